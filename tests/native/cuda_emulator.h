/* CUDA on a CPU, for tests: generated kernels compile as C++ after this, and `emulate` runs them.
 *
 * Each thread of a block is a fiber.  It runs until it waits for its warp or its block; who goes on
 * next, and which warp stands still meanwhile, is drawn from a seed, so that a kernel that forgets to
 * wait gives other bits with another seed.  A wait that not all threads come to is a fault, and so is one that some have left for good.
 * Blocks run one after the other, in an order drawn from the seed as well. */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static

struct rg_dim { unsigned x, y, z; };
static rg_dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum state { READY, AT_WARP, AT_BLOCK, LEFT };
constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;

struct fiber {
  ucontext_t context;
  state is;
  rg_dim index;
  uint64_t shuffled;  /* what the others of the warp read */
};

static std::vector<fiber> fibers;
static ucontext_t scheduler;
static unsigned running;
static std::function<void()> kernel;
static char *stacks;
static uint64_t random_state;

static uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

static void wait(state where) {
  fiber &self = fibers[running];
  self.is = where;
  swapcontext(&self.context, &scheduler);
}

static void enter() {
  kernel();
  wait(LEFT);
}

/* Lets those go on that have all come to one place. */
static bool released(size_t from, size_t to, state where) {
  for (size_t t = from; t < to; t++) if (fibers[t].is != where) return false;
  for (size_t t = from; t < to; t++) fibers[t].is = READY;
  return true;
}

static int run_block() {
  const size_t count = (size_t)blockDim.x * blockDim.y;
  fibers.resize(count);
  std::vector<unsigned> order(count);
  for (size_t t = 0; t < count; t++) {
    fiber &f = fibers[t];
    f.is = READY;
    f.index = {(unsigned)(t % blockDim.x), (unsigned)(t / blockDim.x), 0};
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + t * STACK;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
    order[t] = (unsigned)t;
  }
  uint64_t slow = 0, rounds = 0;  /* a warp that stands still while the others run ahead */
  for (;;) {
    for (size_t t = count; t > 1; t--) std::swap(order[t - 1], order[random_number() % t]);
    if (rounds-- == 0) {
      slow = random_number() % ((count + WARP - 1) / WARP);
      rounds = random_number() % 64;
    }
    bool ran = false, held = false;
    for (unsigned t : order) {
      if (fibers[t].is != READY) continue;
      if (t / WARP == slow) {
        held = true;
        continue;
      }
      ran = true;
      running = t;
      threadIdx = fibers[t].index;
      swapcontext(&scheduler, &fibers[t].context);
    }
    for (size_t t = 0; t < count; t += WARP)
      ran |= released(t, std::min(count, t + WARP), AT_WARP);
    ran |= released(0, count, AT_BLOCK);
    if (ran) continue;
    if (held) {  /* all others wait for it */
      slow = ~0ull;
      continue;
    }
    for (fiber &f : fibers) if (f.is != LEFT) return 1;
    return 0;
  }
}

/* 0, or 1 where threads wait for what never comes. */
static int run(unsigned blocks, unsigned across, unsigned down, uint64_t seed) {
  if (!stacks) {
    const size_t bytes = 1024 * STACK;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (found == MAP_FAILED) return 2;
    stacks = (char *)found;
  }
  random_state = seed * 2 + 1;
  for (int i = 0; i < 8; i++) random_number();
  gridDim = {blocks, 1, 1};
  blockDim = {across, down, 1};
  std::vector<unsigned> order(blocks);
  for (unsigned b = 0; b < blocks; b++) order[b] = b;
  for (size_t b = blocks; b > 1; b--) std::swap(order[b - 1], order[random_number() % b]);
  for (unsigned b : order) {
    blockIdx = {b, 0, 0};
    if (int fault = run_block()) return fault;
  }
  return 0;
}

template <class... A, size_t... I>
int emulate(void (*f)(A...), const int64_t *a, std::index_sequence<I...>, unsigned blocks,
            unsigned across, unsigned down, uint64_t seed) {
  kernel = [=] { f((A)a[I]...); };
  return run(blocks, across, down, seed);
}

template <class... A>
int launch(void (*f)(A...), const int64_t *a, unsigned blocks, unsigned across, unsigned down,
           uint64_t seed) {
  return emulate(f, a, std::index_sequence_for<A...>(), blocks, across, down, seed);
}

template <class T>
T shuffled(T mine, unsigned from) {
  fiber *const warp = &fibers[running / WARP * WARP];
  fibers[running].shuffled = 0;
  __builtin_memcpy(&fibers[running].shuffled, &mine, sizeof mine);
  const unsigned self = running;
  wait(AT_WARP);
  T theirs = mine;
  if (from < WARP) __builtin_memcpy(&theirs, &warp[from].shuffled, sizeof theirs);
  wait(AT_WARP);  /* all have read */
  running = self;
  return theirs;
}

}  // namespace emulator

static inline void __syncthreads() { emulator::wait(emulator::AT_BLOCK); }
static inline void __syncwarp() { emulator::wait(emulator::AT_WARP); }

#define RG_SHUFFLES(T) \
  static inline T __shfl_down_sync(unsigned, T v, unsigned apart) { \
    return emulator::shuffled(v, emulator::running % emulator::WARP + apart); \
  } \
  static inline T __shfl_sync(unsigned, T v, unsigned lane) { \
    return emulator::shuffled(v, lane); \
  }
RG_SHUFFLES(int)
RG_SHUFFLES(unsigned)
RG_SHUFFLES(long)
RG_SHUFFLES(unsigned long)
RG_SHUFFLES(long long)
RG_SHUFFLES(unsigned long long)
RG_SHUFFLES(float)
RG_SHUFFLES(double)
#undef RG_SHUFFLES
