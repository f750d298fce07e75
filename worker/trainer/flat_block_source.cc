#include "worker/trainer/flat_block_source.h"

#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/spec/model_files.h"
#include "worker/trainer/parallel/slab.h"

namespace qlora::trainer {

absl::Status ReadTrainable(const SafetensorsReader& reader,
                           const TrainableLayout& layout,
                           std::span<float> params) {
  for (const TrainableTensor& t : layout.tensors) {
    RETURN_IF_ERROR(CheckModelTensor(reader.Find(t.name), t.name, t.shape));
    const std::span<float> values = params.subspan(t.offset, t.size);
    RETURN_IF_ERROR(reader.ReadFloat32(t.name, values));
    RETURN_IF_ERROR(CheckFinite(values, t.name, "the model"));
  }
  return absl::OkStatus();
}

const float* FlatBlockSource::Find(const std::string& name) const {
  const TrainableTensor* t = layout_.Find(name);
  return t == nullptr ? nullptr : params_.data() + t->offset;
}

LinearWeight FlatBlockSource::Linear(const std::string& name,
                                     int64_t out_features,
                                     int64_t in_features) const {
  return {.format = WeightFormat::kFloat32,
          .out_features = out_features,
          .in_features = in_features,
          .data = Find(absl::StrCat(name, ".weight")),
          .scales = {},
          .block_size = 0,
          .bias = Find(absl::StrCat(name, ".bias"))};
}

absl::StatusOr<BlockWeights> FlatBlockSource::Acquire(int layer) {
  const std::string prefix = BlockPrefix(layer);
  BlockWeights w;
  w.input_norm = Find(prefix + "input_layernorm.weight");
  w.post_attention_norm = Find(prefix + "post_attention_layernorm.weight");
  const std::array<LinearWeight*, 7> places = {&w.q,    &w.k,  &w.v,   &w.o,
                                               &w.gate, &w.up, &w.down};
  const std::vector<LinearShape> linears = BlockLinears(model_);
  for (size_t i = 0; i < places.size(); ++i) {
    const LinearShape& l = linears[i];
    *places[i] = Linear(prefix + l.name, l.out_features, l.in_features);
  }
  return w;
}

absl::StatusOr<OuterWeights> FlatBlockSource::AcquireOuter() {
  OuterWeights w;
  w.embedding =
      Linear("model.embed_tokens", model_.vocab_size, model_.hidden_size);
  w.final_norm = Find("model.norm.weight");
  w.head = model_.tie_word_embeddings
               ? w.embedding
               : Linear("lm_head", model_.vocab_size, model_.hidden_size);
  return w;
}

}  // namespace qlora::trainer
