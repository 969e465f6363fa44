/* CUDA's words as C++ means them: the threads of a block are threads, and blocks run one after another. For tests of a
   program's logic where there is no GPU. */
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

struct Index {
    unsigned x;
};
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static std::barrier<> *of_block;
static void __syncthreads() { of_block->arrive_and_wait(); }

template <class Kernel> static void launch(unsigned blocks, unsigned threads, Kernel kernel) {
    gridDim.x = blocks, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        std::barrier<> together(threads);
        std::vector<std::thread> running;
        of_block = &together;
        for (unsigned i = 0; i < threads; i++)
            running.emplace_back([=] {
                threadIdx.x = i;
                kernel();
            });
        for (auto &one : running) one.join();
    }
}

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

#include "kernel.cu"

extern "C" int64_t row_size() { return ROW_SIZE; }
extern "C" int64_t uniform_size() { return UNIFORM_SIZE; }
extern "C" int64_t sums_size() { return SUMS; }
extern "C" int64_t arguments_size() { return sizeof(Arguments); }

extern "C" void run_once(const Arguments *a) {
    launch(1, 1, [=] { ude_once(*a); });
}
extern "C" void run_evaluate(const Arguments *a, int64_t count, real *out, unsigned blocks, unsigned threads) {
    launch(blocks, threads, [=] { ude_evaluate(*a, count, out); });
}
extern "C" void run_forward(const Arguments *a, int64_t count, real *rows, int64_t capacity, unsigned blocks,
                            unsigned threads) {
    launch(blocks, threads, [=] { ude_forward(*a, count, rows, capacity); });
}
#ifdef GRADIENT
extern "C" void run_pullback(const Arguments *a, int64_t count, const real *rows, int64_t capacity, real *sums,
                             unsigned blocks, unsigned threads) {
    launch(blocks, threads, [=] { ude_pullback(*a, count, rows, capacity, sums); });
    /* of another grid than the sums */
    launch(2, 3, [=] { ude_total(sums, (int64_t)blocks * threads, a->grad_shared); });
}
#endif
