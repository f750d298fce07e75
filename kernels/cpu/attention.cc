#include "kernels/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {
namespace {

constexpr int64_t kTile = kAttentionTile;

int64_t Tiles(int64_t rows) { return (rows + kTile - 1) / kTile; }

int64_t MostKeys(const Attention& op) {
  int64_t most = 0;
  for (int64_t d = 0; d < op.documents; ++d) {
    most = std::max<int64_t>(most, op.offsets[d + 1] - op.offsets[d]);
  }
  return most + op.past;
}

int64_t ScratchFloats(const Attention& op) {
  return AttentionScratchFloats(MostKeys(op), op.dim);
}

// body(task, scratch), tasks handed out as threads become free.
template <typename F>
void ForTasks(const Launch& launch, int64_t tasks, int64_t scratch_floats,
              F body) {
  std::atomic<int64_t> next{0};
  launch.parallel_for(launch.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      float* scratch =
          static_cast<float*>(launch.workspace) + slot * scratch_floats;
      for (int64_t task = next++; task < tasks; task = next++) {
        body(task, scratch);
      }
    }
  });
}

// The whole of (document, key-value head) number `pair`.
template <typename T>
AttentionTask<T> MakeTask(const Attention& op, int64_t pair) {
  const int64_t document = pair / op.kv_heads, kv_head = pair % op.kv_heads;
  const int64_t row = op.offsets[document];
  const int64_t queries = op.offsets[document + 1] - row;
  const int64_t keys = op.past + queries;
  const int64_t group = op.heads / op.kv_heads;
  const int64_t column = kv_head * op.dim;
  AttentionTask<T> t{};
  t.q = op.q.row<T>(row) + column * group;
  t.k = op.k.row<T>(row) + column;
  t.v = op.v.row<T>(row) + column;
  t.q_stride = op.q.stride;
  t.k_stride = op.k.stride;
  t.v_stride = op.v.stride;
  t.out = op.out.row<T>(row) + column * group;
  t.out_stride = op.out.stride;
  if (op.lse != nullptr) {
    t.lse = op.lse + kv_head * group * op.q.rows + row;
    t.lse_stride = op.q.rows;
  }
  t.queries = queries;
  t.past = op.past;
  t.sight = {.keys = keys,
             // One of all keys hides none, and sums with it cannot overflow.
             .window = std::min(op.window, keys),
             .prefix = 0,
             .bidirectional = op.mask == AttentionMask::kBidirectional};
  if (op.mask == AttentionMask::kPrefix) {
    t.sight.prefix = std::clamp<int64_t>(op.prefix[document], 0, keys);
  }
  t.heads = static_cast<int>(group);
  t.dim = op.dim;
  t.scale =
      op.scale != 0 ? op.scale : 1.0f / std::sqrt(static_cast<float>(op.dim));
  t.soft_cap = op.soft_cap;
  t.query_end = queries;
  t.key_end = keys;
  return t;
}

template <typename T>
AttentionTask<T> MakeTask(const AttentionBackward& op, int64_t pair) {
  const Attention& f = op.forward;
  AttentionTask<T> t = MakeTask<T>(f, pair);
  const int64_t row = f.offsets[pair / f.kv_heads];
  const int64_t column = pair % f.kv_heads * t.dim;
  t.dout = op.dout.row<T>(row) + column * t.heads;
  t.dout_stride = op.dout.stride;
  t.dq = op.dq.row<T>(row) + column * t.heads;
  t.dk = op.dk.row<T>(row) + column;
  t.dv = op.dv.row<T>(row) + column;
  t.dq_stride = op.dq.stride;
  t.dk_stride = op.dk.stride;
  t.dv_stride = op.dv.stride;
  return t;
}

// Part `part` of `parts` of [0, rows), cut between tiles.
void CutRows(int64_t rows, int64_t part, int64_t parts, int64_t* begin,
             int64_t* end) {
  const int64_t tiles = Tiles(rows);
  *begin = std::min(rows, tiles * part / parts * kTile);
  *end = std::min(rows, tiles * (part + 1) / parts * kTile);
}

// The keys that the part's queries see.
template <typename T>
void FitKeys(AttentionTask<T>* t) {
  const Sight& s = t->sight;
  if (s.window > 0 && s.prefix == 0) {
    const int64_t low = t->past + t->query_begin + 1 - s.window;
    t->key_begin = std::max<int64_t>(low, 0) / kTile * kTile;
  }
  if (!s.bidirectional) {
    t->key_end = std::min(s.keys, std::max(s.prefix, t->past + t->query_end));
  }
}

// The queries that see the part's keys.
template <typename T>
void FitQueries(AttentionTask<T>* t) {
  const Sight& s = t->sight;
  if (t->key_begin < s.prefix) return;
  if (!s.bidirectional) t->query_begin = t->key_begin;
  if (s.window > 0) {
    t->query_end = std::min(t->queries, Tiles(t->key_end + s.window) * kTile);
    if (s.bidirectional) {
      t->query_begin =
          std::max<int64_t>(0, t->key_begin - s.window) / kTile * kTile;
    }
  }
}

// Into how many parts each pair is cut, so that every thread has some.
int64_t Parts(const Launch& launch, const Attention& op) {
  const int64_t pairs = op.documents * op.kv_heads;
  if (pairs >= launch.threads || op.q.rows == 0) return 1;
  return std::min((2 * launch.threads + pairs - 1) / pairs, Tiles(op.q.rows));
}

// run(task) for each.
template <typename T, typename F>
void RunForward(const Launch& launch, const Attention& op, F run) {
  const int64_t parts = Parts(launch, op);
  ForTasks(launch, op.documents * op.kv_heads * parts, ScratchFloats(op),
           [&](int64_t task, float* scratch) {
             AttentionTask<T> t = MakeTask<T>(op, task / parts);
             t.scratch = scratch;
             CutRows(t.queries, task % parts, parts, &t.query_begin,
                     &t.query_end);
             if (t.query_begin == t.query_end) return;
             FitKeys(&t);
             run(t);
           });
}

// With more than one part a part computes either dq of some queries, or dk and
// dv of some keys: seven products instead of five, and no sums to share.
template <typename T, typename F>
void RunBackward(const Launch& launch, const AttentionBackward& op, F run) {
  const int64_t parts = Parts(launch, op.forward);
  const int64_t halves = parts == 1 ? 1 : 2;
  ForTasks(launch, op.forward.documents * op.forward.kv_heads * parts * halves,
           ScratchFloats(op.forward), [&](int64_t task, float* scratch) {
             const int64_t part = task / halves % parts;
             AttentionTask<T> t = MakeTask<T>(op, task / halves / parts);
             t.scratch = scratch;
             if (halves == 1) {
               run(t);
             } else if (task % 2 == 0) {
               t.dk = t.dv = nullptr;
               CutRows(t.queries, part, parts, &t.query_begin, &t.query_end);
               FitKeys(&t);
               run(t);
             } else {
               t.dq = nullptr;
               CutRows(t.sight.keys, part, parts, &t.key_begin, &t.key_end);
               FitQueries(&t);
               run(t);
             }
           });
}

}  // namespace

Result CpuBackend::Do(const Launch& launch, const Attention& op) const {
  if (op.q.dtype == Dtype::kFloat32) {
    RunForward<float>(launch, op, rows_.float32.attention);
  } else if (product_ == nullptr) {
    RunForward<Bf16>(launch, op, rows_.bfloat16.attention);
  } else {
    RunForward<Bf16>(launch, op, [&](const AttentionTask<Bf16>& t) {
      rows_.attention_tiles(t, *product_);
    });
  }
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const AttentionBackward& op) const {
  if (op.forward.q.dtype == Dtype::kFloat32) {
    RunBackward<float>(launch, op, rows_.float32.attention_backward);
  } else if (product_ == nullptr) {
    RunBackward<Bf16>(launch, op, rows_.bfloat16.attention_backward);
  } else {
    RunBackward<Bf16>(launch, op, [&](const AttentionTask<Bf16>& t) {
      rows_.attention_tiles_backward(t, *product_);
    });
  }
  return Result::kOk;
}

int64_t CpuBackend::Room(const Attention& op, int threads) const {
  return threads * ScratchFloats(op) * static_cast<int64_t>(sizeof(float));
}

int64_t CpuBackend::Room(const AttentionBackward& op, int threads) const {
  return Room(op.forward, threads);
}

}  // namespace qlora::kernels
