#include "worker/trainer/parallel/slab.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/spec/model_files.h"
#include "worker/trainer/parallel/aligned_buffer.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {
namespace {

// Adds tensors to a layout one after another.
class LayoutBuilder {
 public:
  explicit LayoutBuilder(const SlabOptions& options) : options_(options) {
    layout_.block_size = options.block_size;
  }

  void Add(std::string name, std::vector<int64_t> shape, WeightFormat format,
           bool nf4_values = false) {
    SlabTensor t{.name = std::move(name),
                 .shape = std::move(shape),
                 .format = format,
                 .begin = layout_.bytes,
                 .packed = {}};
    const int64_t n = t.num_elements();
    if (format == WeightFormat::kNf4) {
      t.packed = kernels::MakePackedLayout({n, options_.block_size},
                                           options_.double_quant);
      layout_.bytes += t.packed.bytes;
    } else {
      layout_.bytes +=
          kernels::AlignToSlab(n * (format == WeightFormat::kBfloat16 ? 2 : 4));
    }
    t.end = layout_.bytes;
    t.nf4_values = nf4_values;
    layout_.tensors.push_back(std::move(t));
  }

  SlabLayout Take() { return std::move(layout_); }

 private:
  const SlabOptions options_;
  SlabLayout layout_;
};

const float* Floats(const uint8_t* slab, int64_t at) {
  return reinterpret_cast<const float*>(slab + at);
}

LinearWeight ViewTensor(const SlabLayout& layout, const SlabTensor& t,
                        const uint8_t* slab) {
  LinearWeight w{.format = t.format,
                 .out_features = t.shape[0],
                 .in_features = t.shape[1],
                 .data = slab + t.begin,
                 .scales = {},
                 .block_size = 0,
                 .bias = nullptr};
  if (t.format == WeightFormat::kNf4) {
    w.block_size = layout.block_size;
    w.scales = kernels::ViewScales(t.packed, slab + t.begin);
  }
  return w;
}

LinearWeight ViewLinear(const SlabLayout& layout, const std::string& name,
                        const uint8_t* slab) {
  LinearWeight w =
      ViewTensor(layout, *layout.Find(absl::StrCat(name, ".weight")), slab);
  const SlabTensor* bias = layout.Find(absl::StrCat(name, ".bias"));
  if (bias != nullptr) w.bias = Floats(slab, bias->begin);
  return w;
}

// `out`: as long as the tensor's packed layout, aligned to 4 bytes.
absl::Status Quantize(const std::vector<float>& values, const SlabTensor& t,
                      int block_size, const kernels::ParallelFor& parallel_for,
                      uint8_t* out) {
  const kernels::Quantize op{.x = values.data(),
                             .shape = {t.num_elements(), block_size},
                             .codes = out,
                             .scales = kernels::MutableScalesOf(t.packed, out)};
  const int64_t bytes = KernelBackend().WorkspaceBytes(op, 1);
  ASSIGN_OR_RETURN(const AlignedBuffer workspace,
                   AlignedBuffer::Create(bytes, "quantization"));
  if (KernelBackend().Run({.parallel_for = parallel_for,
                           .workspace = workspace.bytes().data(),
                           .workspace_bytes = bytes},
                          op) != kernels::Result::kOk) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", t.name, " cannot be quantized in blocks of ", block_size));
  }
  return absl::OkStatus();
}

// Makes of the values of a matrix what is left of them after NF4.
absl::Status RoundToNf4(const SlabTensor& tensor, const SlabOptions& options,
                        const kernels::ParallelFor& parallel_for,
                        std::vector<float>& values) {
  LayoutBuilder builder(options);
  builder.Add(tensor.name, tensor.shape, WeightFormat::kNf4);
  const SlabLayout layout = builder.Take();
  ASSIGN_OR_RETURN(const AlignedBuffer packed,
                   AlignedBuffer::Create(layout.bytes, "quantization"));
  uint8_t* const slab = packed.bytes().data();
  RETURN_IF_ERROR(Quantize(values, layout.tensors[0], options.block_size,
                           parallel_for, slab));
  const LinearWeight w = ViewTensor(layout, layout.tensors[0], slab);
  RunOp({.parallel_for = parallel_for},
        kernels::Dequantize{.codes = slab,
                            .scales = w.scales,
                            .rows = w.out_features,
                            .block_size = w.block_size,
                            .out = kernels::FloatView(
                                values.data(), w.out_features, w.in_features)});
  return absl::OkStatus();
}

}  // namespace

int64_t SlabTensor::num_elements() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

const SlabTensor* SlabLayout::Find(std::string_view name) const {
  const auto it = std::ranges::find(tensors, name, &SlabTensor::name);
  return it == tensors.end() ? nullptr : &*it;
}

SlabLayout MakeBlockLayout(const ModelDescription& model,
                           const SlabOptions& options) {
  LayoutBuilder builder(options);
  const std::vector<LinearShape> linears = BlockLinears(model);
  for (const LinearShape& l : linears) {
    builder.Add(absl::StrCat(l.name, ".weight"),
                {l.out_features, l.in_features}, options.linear,
                options.nf4_values);
  }
  for (const LinearShape& l : linears) {
    if (!l.bias) continue;
    builder.Add(absl::StrCat(l.name, ".bias"), {l.out_features},
                WeightFormat::kFloat32);
  }
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    builder.Add(absl::StrCat(norm, ".weight"), {model.hidden_size},
                WeightFormat::kFloat32);
  }
  return builder.Take();
}

SlabLayout MakeOuterLayout(const ModelDescription& model,
                           const SlabOptions& options) {
  LayoutBuilder builder(options);
  const std::vector<int64_t> shape = {model.vocab_size, model.hidden_size};
  builder.Add("model.embed_tokens.weight", shape, options.dense);
  if (!model.tie_word_embeddings) {
    builder.Add("lm_head.weight", shape, options.dense);
  }
  builder.Add("model.norm.weight", {model.hidden_size}, WeightFormat::kFloat32);
  return builder.Take();
}

std::string BlockPrefix(int layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

BlockWeights ViewBlock(const ModelDescription& model, const SlabLayout& layout,
                       const uint8_t* slab) {
  BlockWeights w;
  const auto norm = [&](const char* name) {
    return Floats(slab, layout.Find(name)->begin);
  };
  w.input_norm = norm("input_layernorm.weight");
  w.post_attention_norm = norm("post_attention_layernorm.weight");
  const std::array<LinearWeight*, 7> places = {&w.q,    &w.k,  &w.v,   &w.o,
                                               &w.gate, &w.up, &w.down};
  const std::vector<LinearShape> linears = BlockLinears(model);
  for (size_t i = 0; i < places.size(); ++i) {
    *places[i] = ViewLinear(layout, linears[i].name, slab);
  }
  return w;
}

OuterWeights ViewOuter(const ModelDescription& model, const SlabLayout& layout,
                       const uint8_t* slab) {
  OuterWeights w;
  w.embedding = ViewLinear(layout, "model.embed_tokens", slab);
  w.final_norm = Floats(slab, layout.Find("model.norm.weight")->begin);
  w.head = model.tie_word_embeddings ? w.embedding
                                     : ViewLinear(layout, "lm_head", slab);
  return w;
}

absl::Status ReadIntoSlab(const SafetensorsReader& reader,
                          const std::string& prefix, const SlabTensor& tensor,
                          const SlabOptions& options,
                          const kernels::ParallelFor& parallel_for,
                          std::span<uint8_t> out) {
  const int64_t n = tensor.num_elements();
  std::vector<float> values(n);
  RETURN_IF_ERROR(reader.ReadFloat32(prefix + tensor.name, values));
  // Quantization would hide them: they do not count for a block's scale.
  RETURN_IF_ERROR(CheckFinite(values, prefix + tensor.name, "the model"));
  if (tensor.nf4_values) {
    RETURN_IF_ERROR(RoundToNf4(tensor, options, parallel_for, values));
  }
  std::ranges::fill(out, 0);
  switch (tensor.format) {
    case WeightFormat::kFloat32:
      std::memcpy(out.data(), values.data(), values.size() * sizeof(float));
      return absl::OkStatus();
    case WeightFormat::kBfloat16:
      RunOp({.parallel_for = parallel_for},
            kernels::Convert{.x = kernels::FloatView(values.data(), 1, n),
                             .out = kernels::MakeView(
                                 out.data(), kernels::Dtype::kBfloat16, 1, n)});
      return absl::OkStatus();
    case WeightFormat::kNf4:
      return Quantize(values, tensor, options.block_size, parallel_for,
                      out.data());
  }
  return absl::InternalError("unknown weight format");
}

}  // namespace qlora::trainer
