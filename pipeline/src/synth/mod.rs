//! The embedded data set: images drawn by the program.
