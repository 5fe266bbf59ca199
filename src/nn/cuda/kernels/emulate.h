// CUDA's language on the CPU, as far as the kernels use it: for tests where there is no GPU.
//
// A block's threads are fibers of one operating-system thread, switched at barriers and warp
// operations and nowhere else. They run in either order (`emulate_launch`'s `backwards`), as do blocks:
// a kernel whose results depend on it has a race. Barriers that some threads never reach, warp
// operations without a whole warp and calls with wrong arguments are errors.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef BT_EMULATE_SCAN
#define __global__ BT_EMULATED_KERNEL
#else
#define __global__
#endif
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time on an operating-system thread.
#define __shared__ static thread_local
#define __restrict__ __restrict

namespace emulation {

struct Index {
    unsigned x, y, z;
};

enum State { RUNS, AT_BARRIER, AT_WARP, DONE };

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    bool started = false;
    State state = DONE;
    // Warp operations that it has gone through.
    unsigned operations = 0;
};

struct Warp {
    // What lanes give each other: one set for even operations, one for odd, so that no lane overwrites
    // what another has yet to read.
    u_int64_t given[2][32];
};

constexpr size_t STACK = 128 * 1024;
constexpr unsigned MOST_THREADS = 1024;

struct Machine {
    std::vector<Fiber> fibers = std::vector<Fiber>(MOST_THREADS);
    std::vector<Warp> warps = std::vector<Warp>(MOST_THREADS / 32);
    char* stacks = nullptr;
    jmp_buf scheduler;
    unsigned current = 0;
    void (*call)(void** arguments) = nullptr;
    void** arguments = nullptr;

    Machine() {
        void* at = mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks = at == MAP_FAILED ? nullptr : (char*)at;
    }
    ~Machine() {
        if (stacks) munmap(stacks, STACK * MOST_THREADS);
    }
};

inline Machine& machine() {
    static thread_local Machine it;
    return it;
}

}  // namespace emulation

inline thread_local emulation::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

__attribute__((noinline)) inline void give_way(State state) {
    Machine& m = machine();
    Fiber& f = m.fibers[m.current];
    f.state = state;
    if (!_setjmp(f.resume)) _longjmp(m.scheduler, 1);
}

// A fiber runs one thread of a block, then waits for the next block.
inline void fiber_main() {
    for (;;) {
        Machine& m = machine();
        m.call(m.arguments);
        give_way(DONE);
    }
}

__attribute__((noinline)) inline void resume(unsigned thread) {
    Machine& m = machine();
    Fiber& f = m.fibers[thread];
    m.current = thread;
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                 thread / (blockDim.x * blockDim.y)};
    if (_setjmp(m.scheduler)) return;
    if (f.started) _longjmp(f.resume, 1);
    f.started = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = m.stacks + thread * STACK;
    f.start.uc_stack.ss_size = STACK;
    f.start.uc_link = nullptr;
    makecontext(&f.start, fiber_main, 0);
    setcontext(&f.start);
}

// Runs a warp until all of its threads wait at the block's barrier or are done.
inline const char* run_warp(unsigned first, unsigned last, bool backwards) {
    Machine& m = machine();
    for (;;) {
        bool waits = false, others = false;
        for (unsigned i = 0; i < last - first; i++) {
            unsigned thread = backwards ? last - 1 - i : first + i;
            if (m.fibers[thread].state == RUNS) resume(thread);
            (m.fibers[thread].state == AT_WARP ? waits : others) = true;
        }
        if (!waits) return nullptr;
        if (others || last - first != 32) return "a warp operation without the whole warp";
        for (unsigned thread = first; thread < last; thread++) m.fibers[thread].state = RUNS;
    }
}

inline const char* run_block(bool backwards) {
    Machine& m = machine();
    unsigned threads = blockDim.x * blockDim.y * blockDim.z, warps = (threads + 31) / 32;
    for (unsigned t = 0; t < threads; t++) m.fibers[t].state = RUNS, m.fibers[t].operations = 0;
    for (;;) {
        for (unsigned i = 0; i < warps; i++) {
            unsigned first = 32 * (backwards ? warps - 1 - i : i);
            unsigned last = first + 32 < threads ? first + 32 : threads;
            if (const char* error = run_warp(first, last, backwards)) return error;
        }
        unsigned done = 0;
        for (unsigned t = 0; t < threads; t++) done += m.fibers[t].state == DONE;
        if (done == threads) return nullptr;
        if (done != 0) return "a barrier that some threads never reach";
        for (unsigned t = 0; t < threads; t++) m.fibers[t].state = RUNS;
    }
}

inline const char* run_grid(bool backwards) {
    unsigned long long blocks = (unsigned long long)gridDim.x * gridDim.y * gridDim.z;
    for (unsigned long long i = 0; i < blocks; i++) {
        unsigned long long b = backwards ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y),
                    (unsigned)(b / gridDim.x / gridDim.y)};
        if (const char* error = run_block(backwards)) return error;
    }
    return nullptr;
}

inline void* warp_exchange(u_int64_t mine, unsigned from) {
    Machine& m = machine();
    unsigned thread = m.current, lane = thread % 32;
    unsigned set = m.fibers[thread].operations++ % 2;
    m.warps[thread / 32].given[set][lane] = mine;
    give_way(AT_WARP);
    return &m.warps[thread / 32].given[set][from % 32];
}

template <typename T>
T shuffle(T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "what a lane gives");
    u_int64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    memcpy(&value, warp_exchange(bits, from), sizeof(T));
    return value;
}

// What a kernel's arguments are, one letter each, and how it is called with pointers to them.
template <typename T>
constexpr char letter() {
    if (std::is_pointer<T>::value) return 'p';
    if (std::is_same<T, unsigned>::value) return 'u';
    if (std::is_same<T, unsigned long long>::value) return 'l';
    if (std::is_same<T, float>::value) return 'f';
    return '?';
}

template <auto KERNEL>
struct Entry;

template <typename... A, void (*KERNEL)(A...)>
struct Entry<KERNEL> {
    static constexpr char letters[] = {letter<A>()..., 0};

    template <size_t... I>
    static void spread(void** from, std::index_sequence<I...>) {
        KERNEL(*(std::remove_const_t<A>*)from[I]...);
    }
    static void call(void** from) { spread(from, std::index_sequence_for<A...>()); }
};

struct Kernel {
    const char* name;
    const char* letters;
    void (*call)(void**);
};

}  // namespace emulation

inline void __syncthreads() { emulation::give_way(emulation::AT_BARRIER); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return emulation::shuffle(value, (emulation::machine().current % 32) ^ mask);
}

template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
    unsigned lane = emulation::machine().current % 32;
    return emulation::shuffle(value, lane + delta < 32 ? lane + delta : lane);
}

// Threads of a block run one after another, blocks too.
inline unsigned atomicMin(unsigned* at, unsigned value) {
    unsigned old = *at;
    if (value < old) *at = value;
    return old;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
using std::isfinite;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __nv_bfloat16 {
    unsigned short bits;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }

// Nearest, ties to even; NaN becomes the one that the device makes.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    unsigned bits = __float_as_uint(value);
    if (value != value) return {0x7fff};
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
