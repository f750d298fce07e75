// The output head and its cross-entropy as one op over chunks of tokens: the
// logits of one chunk exist at a time.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/cross_entropy.h"
#include "kernels/types.h"

namespace qlora::kernels {

// c = op(a) op(b), or c += that; op transposes where told. A vendor's product,
// given by the caller; runs on the caller's threads.
using Gemm =
    std::function<void(bool transpose_a, const View& a, bool transpose_b,
                       const View& b, bool add, const View& c)>;

inline constexpr double kHeadLossError = 16;

// logits = x weight^T; the loss of each row as cross_entropy.h defines it; with
// dx also the gradient of scale * (their sum). Rows whose target is below 0 are
// left out before the product: loss 0, gradient 0. No tokens: nothing is
// written.
//
// A backend differs from the reference by at most kHeadLossError * u * m, where
// u is 2^-24 (bfloat16: 2^-8) and with l = 1 + the largest |x| |row of weight|
// + log(vocab) and g = scale * (1 + 2 z_loss l) l: m = l (1 + z_loss l) for the
// loss, g times the largest magnitude of weight for dx, and g times that of x
// times the tokens for dweight. NaN and infinity as in cross_entropy.h, for the
// row and what its gradient is added to.
//
// WorkspaceBytes reads the sizes and types of x and weight, chunk, and whether
// dx and dweight have data.
struct HeadLoss {
  // [tokens, hidden], float32 or bfloat16; fewer than 2^31 tokens.
  View x = {};
  // [vocab, hidden], any type; of another than x it is converted panel by
  // panel. 0 < vocab < 2^31.
  View weight = {};
  // [tokens], each below vocab.
  const int32_t* targets = nullptr;
  LossOptions options = {};
  // Tokens whose logits exist at a time, at least 1.
  int64_t chunk = 512;
  Gemm gemm = {};
  // [tokens], written.
  double* loss = nullptr;
  // As x, written; no data: forward only.
  View dx = {};
  // float32 [vocab, hidden], added to, beside dx only; no data for a frozen
  // head.
  View dweight = {};
};

}  // namespace qlora::kernels
