// The library that the emulation loads: all kernels, and a way to call them by name. `registry.inc`,
// `EMULATED(name)` for each, is made from the preprocessed kernels (`emulate.rs`).
#include "all.cu"

static const emulation::Kernel KERNELS[] = {
#define EMULATED(NAME) {#NAME, emulation::Entry<NAME>::letters, emulation::Entry<NAME>::call},
#include "registry.inc"
    {nullptr, nullptr, nullptr},
};

extern "C" const emulation::Kernel* emulate_kernel(unsigned number) {
    return number + 1 < sizeof(KERNELS) / sizeof(*KERNELS) ? KERNELS + number : nullptr;
}

// Runs a grid; null, or what went wrong.
extern "C" const char* emulate_launch(
    const emulation::Kernel* kernel, const unsigned* grid, const unsigned* block, void** arguments,
    int backwards
) {
    emulation::Machine& m = emulation::machine();
    if (!m.stacks) return "no memory for the threads' stacks";
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    m.call = kernel->call;
    m.arguments = arguments;
    const char* error = emulation::run_grid(backwards != 0);
    // What was left in the middle of a block begins anew.
    if (error) {
        for (auto& fiber : m.fibers) fiber.started = false;
    }
    return error;
}
