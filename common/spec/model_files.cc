#include "common/spec/model_files.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"

namespace qlora {
namespace {

using Json = nlohmann::json;

std::string Shape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Reads of a tokenizer.json what ids "model": {"vocab": ...} has: an object of
// token to id, or a list of [token, score] whose places are the ids. Nothing
// else is kept: these files are large.
class VocabularyScan : public nlohmann::json_sax<Json> {
 public:
  int64_t largest() const { return largest_; }
  const std::string& token() const { return largest_token_; }

  bool key(std::string& name) override {
    if (depth_ == 1) in_model_ = name == "model";
    if (depth_ == 2) in_vocab_ = in_model_ && name == "vocab";
    if (InVocabulary()) token_ = name;
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (InVocabulary()) {
      Note(static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)));
    }
    return true;
  }
  bool start_array(size_t) override {
    if (InVocabulary()) {
      token_.clear();
      Note(entries_++);
    }
    ++depth_;
    return true;
  }
  bool string(std::string& text) override {
    // The token of a [token, score].
    if (in_vocab_ && depth_ == 4 && largest_token_.empty()) {
      largest_token_ = text;
    }
    return true;
  }
  bool start_object(size_t) override {
    ++depth_;
    return true;
  }
  bool end_object() override { return End(); }
  bool end_array() override { return End(); }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return true; }
  bool parse_error(size_t, const std::string&,
                   const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  bool InVocabulary() const { return in_vocab_ && depth_ == 3; }
  bool End() {
    if (--depth_ < 3) in_vocab_ = false;
    return true;
  }
  void Note(int64_t id) {
    if (id <= largest_) return;
    largest_ = id;
    largest_token_ = token_;
  }

  int depth_ = 0;
  bool in_model_ = false;
  bool in_vocab_ = false;
  int64_t entries_ = 0;
  std::string token_;
  int64_t largest_ = -1;
  std::string largest_token_;
};

}  // namespace

absl::Status CheckModelTensor(const TensorInfo* tensor, const std::string& name,
                              const std::vector<int64_t>& shape) {
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model's files have no tensor ", name, " ",
                     Shape(shape), ", which config.json asks for"));
  }
  if (tensor->shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " has shape ", Shape(tensor->shape),
                     "; config.json asks for ", Shape(shape)));
  }
  switch (tensor->dtype) {
    case TensorDtype::kF16:
    case TensorDtype::kBF16:
    case TensorDtype::kF32:
    case TensorDtype::kF64:
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, " is of type ",
                       std::string(DtypeName(tensor->dtype)),
                       "; supported are F32, F16, BF16 and F64"));
  }
}

absl::Status CheckModelTensors(const ModelDescription& model,
                               const FindTensor& find) {
  const auto check = [&](const std::string& name,
                         const std::vector<int64_t>& shape) {
    return CheckModelTensor(find(name), name, shape);
  };
  const std::vector<int64_t> table = {model.vocab_size, model.hidden_size};
  RETURN_IF_ERROR(check("model.embed_tokens.weight", table));
  const std::vector<LinearShape> linears = BlockLinears(model);
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
      RETURN_IF_ERROR(
          check(absl::StrCat(prefix, norm, ".weight"), {model.hidden_size}));
    }
    for (const LinearShape& linear : linears) {
      const std::string module = prefix + linear.name;
      RETURN_IF_ERROR(
          check(module + ".weight", {linear.out_features, linear.in_features}));
      if (linear.bias) {
        RETURN_IF_ERROR(check(module + ".bias", {linear.out_features}));
      }
    }
  }
  RETURN_IF_ERROR(check("model.norm.weight", {model.hidden_size}));
  if (model.tie_word_embeddings) return absl::OkStatus();
  return check("lm_head.weight", table);
}

absl::Status CheckFinite(std::span<const float> values, const std::string& name,
                         const std::string& owner) {
  if (std::ranges::all_of(values, [](float v) { return std::isfinite(v); })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", name, " of ", owner,
                   " has values that are not finite; get its files again"));
}

absl::Status CheckTokenizer(std::string_view tokenizer_json,
                            const ModelDescription& model) {
  VocabularyScan scan;
  if (!Json::sax_parse(tokenizer_json, &scan)) {
    return absl::InvalidArgumentError("tokenizer.json: is not JSON");
  }
  if (scan.largest() < 0) {
    return absl::InvalidArgumentError(
        "tokenizer.json: has no model.vocab with token ids; expected is a file "
        "of the tokenizers library");
  }
  if (scan.largest() < model.vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tokenizer.json: its vocabulary goes up to id ", scan.largest(), " (",
      ShownJson(scan.token()), "), but vocab_size in config.json is ",
      model.vocab_size, "; use the tokenizer that belongs to the model"));
}

}  // namespace qlora
