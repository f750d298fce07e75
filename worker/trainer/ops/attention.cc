#include "worker/trainer/ops/attention.h"

#include <cmath>

#include "kernels/cpu/simd/kernels.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::trainer {

using kernels::AttentionScratchFloats;
using kernels::AttentionTask;
using kernels::Simd;

int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t max_keys,
                              int threads) {
  return threads * AttentionScratchFloats(max_keys, shape.dim) *
         static_cast<int64_t>(sizeof(float));
}

namespace {

// The forward part of task (document, key-value head).
template <typename T>
AttentionTask<T> MakeTask(const AttentionArgs& args, int64_t task, int slot) {
  const AttentionShape& shape = args.shape;
  const int64_t document = task / shape.kv_heads;
  const int64_t kv_head = task % shape.kv_heads;
  const int64_t row = args.offsets[document];
  const int64_t queries = args.offsets[document + 1] - row;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t column = kv_head * shape.dim;
  const int64_t most_keys = args.k.rows;
  AttentionTask<T> t{};
  t.q = args.q.row<T>(row) + column * group;
  t.k = args.k.row<T>(row) + column;
  t.v = args.v.row<T>(row) + column;
  t.q_stride = args.q.stride;
  t.k_stride = args.k.stride;
  t.v_stride = args.v.stride;
  t.out = args.out.row<T>(row) + column * group;
  t.out_stride = args.out.stride;
  if (args.lse != nullptr) {
    t.lse = args.lse + kv_head * group * args.q.rows + row;
    t.lse_stride = args.q.rows;
  }
  t.queries = queries;
  t.past = args.past;
  t.heads = static_cast<int>(group);
  t.dim = shape.dim;
  t.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
  t.scratch = static_cast<float*>(args.scratch) +
              slot * AttentionScratchFloats(most_keys, shape.dim);
  return t;
}

int64_t NumTasks(const AttentionArgs& args) {
  return static_cast<int64_t>(args.offsets.size() - 1) * args.shape.kv_heads;
}

}  // namespace

void Attention(const AttentionArgs& args) {
  WithType(args.q.dtype, [&](auto type) {
    using T = decltype(type);
    ParallelTasks(NumTasks(args), [&](int64_t task, int slot) {
      Simd<T>().attention(MakeTask<T>(args, task, slot));
    });
  });
}

void AttentionBackward(const AttentionArgs& args, const View& dout,
                       const View& dq, const View& dk, const View& dv) {
  WithType(args.q.dtype, [&](auto type) {
    using T = decltype(type);
    ParallelTasks(NumTasks(args), [&](int64_t task, int slot) {
      AttentionTask<T> t = MakeTask<T>(args, task, slot);
      const int64_t row = args.offsets[task / args.shape.kv_heads];
      const int64_t column = task % args.shape.kv_heads * t.dim;
      t.dout = dout.row<T>(row) + column * t.heads;
      t.dout_stride = dout.stride;
      t.dq = dq.row<T>(row) + column * t.heads;
      t.dk = dk.row<T>(row) + column;
      t.dv = dv.row<T>(row) + column;
      t.dq_stride = dq.stride;
      t.dk_stride = dk.stride;
      t.dv_stride = dv.stride;
      Simd<T>().attention_backward(t);
    });
  });
}

}  // namespace qlora::trainer
