//! Objectives with closed-form gradients.
