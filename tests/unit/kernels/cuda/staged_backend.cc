#include "tests/unit/kernels/cuda/staged_backend.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

namespace qlora::kernels {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kGuard = 256;
constexpr char kGuardByte = 0x5a;

// The buffers of an op: told of each, then asked for their places.
class Staging {
 public:
  explicit Staging(DeviceMemory& memory) : memory_(memory) {}
  ~Staging() {
    for (const Range& range : ranges_) memory_.Free(range.device);
  }

  // `visit` calls it with each pointer and how many elements are there.
  template <typename T>
  void operator()(T*& p, int64_t count) {
    Handle(const_cast<std::remove_const_t<T>*>(p), count * sizeof(T),
           [&p](char* to) { p = reinterpret_cast<T*>(to); });
  }
  void operator()(const void*& p, Dtype dtype, int64_t count) {
    Handle(const_cast<void*>(p), count * ElementSize(dtype),
           [&p](char* to) { p = to; });
  }
  void operator()(View& v) {
    if (v.rows == 0) return;
    Handle(v.data, ((v.rows - 1) * v.stride + v.columns) * ElementSize(v.dtype),
           [&v](char* to) { v.data = to; });
  }

  // Between the two rounds: merges what overlaps and copies it.
  bool Stage() {
    std::sort(ranges_.begin(), ranges_.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    std::vector<Range> merged;
    for (const Range& range : ranges_) {
      if (!merged.empty() && range.begin < merged.back().end) {
        merged.back().end = std::max(merged.back().end, range.end);
      } else {
        merged.push_back(range);
      }
    }
    ranges_ = merged;
    collecting_ = false;
    return std::all_of(ranges_.begin(), ranges_.end(),
                       [this](Range& range) { return Copy(range); });
  }

  // Copies everything back; false if something beside it changed.
  bool Unstage() {
    for (const Range& range : ranges_) {
      std::vector<char> bytes(Bytes(range));
      if (!memory_.ToHost(bytes.data(), range.device, Bytes(range))) {
        return false;
      }
      const int64_t front = Front(range), size = range.end - range.begin;
      const auto is_guard = [](char c) { return c == kGuardByte; };
      if (!std::all_of(bytes.begin(), bytes.begin() + front, is_guard) ||
          !std::all_of(bytes.begin() + front + size, bytes.end(), is_guard)) {
        return false;
      }
      std::memcpy(range.begin, bytes.data() + front, size);
    }
    return true;
  }

 private:
  struct Range {
    char* begin;
    char* end;
    char* device;
  };

  static int64_t Front(const Range& range) {
    return kGuard + static_cast<int64_t>(
                        reinterpret_cast<uintptr_t>(range.begin) % kAlignment);
  }
  static int64_t Bytes(const Range& range) {
    return Front(range) + (range.end - range.begin) + kGuard;
  }

  bool Copy(Range& range) {
    range.device = memory_.Allocate(Bytes(range));
    std::vector<char> bytes(Bytes(range), kGuardByte);
    std::memcpy(bytes.data() + Front(range), range.begin,
                range.end - range.begin);
    return range.device != nullptr &&
           memory_.ToDevice(range.device, bytes.data(), Bytes(range));
  }

  template <typename Set>
  void Handle(void* p, int64_t bytes, Set set) {
    char* begin = static_cast<char*>(p);
    if (begin == nullptr || bytes == 0) return;
    if (collecting_) {
      ranges_.push_back({begin, begin + bytes, nullptr});
      return;
    }
    for (const Range& range : ranges_) {
      if (begin >= range.begin && begin < range.end) {
        set(range.device + Front(range) + (begin - range.begin));
        return;
      }
    }
  }

  DeviceMemory& memory_;
  bool collecting_ = true;
  std::vector<Range> ranges_;
};

void Visit(Quantize& op, Staging& s) {
  s(op.x, op.dtype, op.shape.num_elements);
  s(op.codes, op.shape.code_bytes());
  s(op.scales.absmax, op.shape.num_blocks());
  s(op.scales.absmax_codes, op.shape.num_blocks());
  s(op.scales.absmax_scale, op.shape.num_nested_blocks());
  s(op.scales.offset, 1);
}

void Visit(Dequantize& op, Staging& s) {
  const BlockwiseShape shape = {op.rows * op.out.columns, op.block_size};
  s(op.codes, shape.code_bytes());
  s(op.scales.absmax, shape.num_blocks());
  s(op.scales.absmax_codes, shape.num_blocks());
  s(op.scales.absmax_scale, shape.num_nested_blocks());
  s(op.scales.offset, 1);
  s(op.out);
}

void Visit(QuantizeInt8Rows& op, Staging& s) {
  s(op.x);
  s(op.codes, op.x.rows * op.x.columns);
  s(op.scale, op.x.rows);
}

void Visit(DequantizeInt8Rows& op, Staging& s) {
  s(op.codes, op.out.rows * op.out.columns);
  s(op.scale, op.out.rows);
  s(op.out);
}

void Visit(QuantizeDynamic& op, Staging& s) {
  s(op.x, op.shape.num_elements);
  s(op.codes, op.shape.num_elements);
  s(op.scale, op.shape.num_blocks());
}

void Visit(DequantizeDynamic& op, Staging& s) {
  s(op.codes, op.shape.num_elements);
  s(op.scale, op.shape.num_blocks());
  s(op.out, op.shape.num_elements);
}

void Visit(RmsNorm& op, Staging& s) {
  s(op.x);
  s(op.add);
  s(op.weight, op.x.columns);
  s(op.out);
  s(op.rstd, op.x.rows);
}

void Visit(RmsNormBackward& op, Staging& s) {
  s(op.x);
  s(op.weight, op.x.columns);
  s(op.rstd, op.x.rows);
  s(op.dy);
  s(op.dx);
  s(op.dweight, op.x.columns);
}

void Visit(LayerNorm& op, Staging& s) {
  s(op.x);
  s(op.add);
  s(op.weight, op.x.columns);
  s(op.bias, op.x.columns);
  s(op.out);
  s(op.mean, op.x.rows);
  s(op.rstd, op.x.rows);
}

void Visit(LayerNormBackward& op, Staging& s) {
  s(op.x);
  s(op.weight, op.x.columns);
  s(op.mean, op.x.rows);
  s(op.rstd, op.x.rows);
  s(op.dy);
  s(op.dx);
  s(op.dweight, op.x.columns);
  s(op.dbias, op.x.columns);
}

void Visit(Rotary& op, Staging& s) {
  s(op.x);
  s(op.cos, op.positions * (op.rotary_dim / 2));
  s(op.sin, op.positions * (op.rotary_dim / 2));
  s(op.position, op.x.rows);
  s(op.query_norm, op.dim);
  s(op.key_norm, op.dim);
  s(op.rstd, op.x.rows * op.heads);
}

void Visit(RotaryNormBackward& op, Staging& s) {
  Visit(op.rotary, s);
  s(op.input);
  s(op.dquery_norm, op.rotary.dim);
  s(op.dkey_norm, op.rotary.dim);
}

void Visit(GatedActivation& op, Staging& s) {
  s(op.gate);
  s(op.up);
  s(op.out);
}

void Visit(GatedActivationBackward& op, Staging& s) {
  s(op.gate);
  s(op.up);
  s(op.d);
}

void Visit(Dropout& op, Staging& s) {
  s(op.x);
  s(op.row_keys, op.x.rows);
  s(op.out);
}

void Visit(Embedding& op, Staging& s) {
  s(op.tokens, op.out.rows);
  s(op.table);
  s(op.out);
}

void Visit(EmbeddingBackward& op, Staging& s) {
  s(op.tokens, op.dx.rows);
  s(op.dx);
  s(op.dtable);
}

void Visit(Convert& op, Staging& s) {
  s(op.x);
  s(op.out);
}

void Visit(Add& op, Staging& s) {
  s(op.y);
  s(op.x);
}

void Visit(ColumnSums& op, Staging& s) {
  s(op.x);
  s(op.sums, op.x.columns);
}

void Visit(CrossEntropy& op, Staging& s) {
  s(op.logits);
  s(op.targets, op.logits.rows);
  s(op.loss, op.logits.rows);
}

void Visit(AdamW& op, Staging& s) {
  const int64_t blocks = (op.n + kMomentBlockSize - 1) / kMomentBlockSize;
  s(op.param, op.n);
  s(op.grad, op.n);
  s(op.moments.exp_avg, op.n);
  s(op.moments.exp_avg_sq, op.n);
  s(op.moments.exp_avg_codes, op.n);
  s(op.moments.exp_avg_scale, blocks);
  s(op.moments.exp_avg_sq_codes, op.n);
  s(op.moments.exp_avg_sq_scale, blocks);
  s(op.clip_sum_of_squares, 1);
  s(op.grad_sum_of_squares, 1);
}

void Visit(SumOfSquares& op, Staging& s) {
  s(op.x, op.n);
  s(op.sum, 1);
}

class StagedBackend final : public Backend {
 public:
  StagedBackend(const Backend& device, DeviceMemory& memory)
      : device_(device), memory_(memory) {}

  std::string_view name() const override { return device_.name(); }

 private:
  bool ReadsHostMemory() const override { return false; }
  template <typename Op>
  Result Stage(const Launch& launch, Op op) const {
    Staging staging(memory_);
    // NaN of every type: contents do not matter.
    std::vector<char> room(device_.WorkspaceBytes(op, launch.threads) + 64,
                           '\xff');
    char* workspace = room.data();
    workspace += -reinterpret_cast<uintptr_t>(workspace) % 64;
    const auto bytes = static_cast<int64_t>(room.size()) - 64;
    Launch there = launch;
    const auto visit = [&] {
      Visit(op, staging);
      staging(workspace, bytes);
    };
    visit();
    if (!staging.Stage()) return Result::kDeviceError;
    visit();
    there.workspace = workspace;
    there.workspace_bytes = bytes;
    const Result result = device_.Run(there, op);
    return result == Result::kOk && !staging.Unstage() ? Result::kDeviceError
                                                       : result;
  }

#define QLORA_STAGE(Op)                                          \
  Result Do(const Launch& launch, const Op& op) const override { \
    return Stage(launch, op);                                    \
  }
// So that a caller without a workspace is refused as by the device itself.
#define QLORA_STAGE_WITH_ROOM(Op)                          \
  QLORA_STAGE(Op)                                          \
  int64_t Room(const Op& op, int threads) const override { \
    return device_.WorkspaceBytes(op, threads);            \
  }
// Devices lack them, which is theirs to say.
#define QLORA_PASS_ON(Op)                                        \
  Result Do(const Launch& launch, const Op& op) const override { \
    return device_.Run(launch, op);                              \
  }
  QLORA_PLAIN_OPS(QLORA_STAGE)
  QLORA_WORKSPACE_OPS(QLORA_STAGE_WITH_ROOM)
  QLORA_CPU_OPS(QLORA_PASS_ON)
#undef QLORA_PASS_ON
#undef QLORA_STAGE_WITH_ROOM
#undef QLORA_STAGE

  const Backend& device_;
  DeviceMemory& memory_;
};

}  // namespace

std::unique_ptr<Backend> MakeStagedBackend(const Backend& device,
                                           DeviceMemory& memory) {
  return std::make_unique<StagedBackend>(device, memory);
}

}  // namespace qlora::kernels
