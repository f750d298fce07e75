// Which products this processor and its kernel have.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/bf16_product.h"

namespace qlora::kernels {

extern const Bf16Product kBf16AmxProduct;
extern const Bf16Product kBf16Avx512Product;

namespace {

struct Features {
  bool avx512_bf16 = false;
  bool amx_bf16 = false;
};

Features ReadFeatures() {
  Features f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
  constexpr unsigned kAmx = 1u << 22 | 1u << 24;  // bfloat16, tiles
  f.amx_bf16 = (d & kAmx) == kAmx;
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    f.avx512_bf16 = (a & 1u << 5) != 0;
  }
  return f;
}

// Linux hands the tiles' state out on request only, to the whole process.
bool AskForTiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

std::span<const Bf16Product* const> Bf16Products() {
  static const Bf16Product* products[2];
  static const size_t count = [] {
    const Features f = ReadFeatures();
    if (!__builtin_cpu_supports("avx512bw")) return 0;
    int n = 0;
    if (f.amx_bf16 && AskForTiles()) products[n++] = &kBf16AmxProduct;
    if (f.avx512_bf16) products[n++] = &kBf16Avx512Product;
    return n;
  }();
  return {products, count};
}

}  // namespace qlora::kernels
