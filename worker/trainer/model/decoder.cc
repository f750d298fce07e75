// Decoding with a key-value cache.
#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "c10/core/InferenceMode.h"
#include "common/base/status_macros.h"
#include "worker/trainer/model/block.h"
#include "worker/trainer/model/block_binding.h"
#include "worker/trainer/model/checks.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/model/parameters.h"
#include "worker/trainer/model/workspace.h"
#include "worker/trainer/ops/loss.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"
#include "worker/trainer/torch_guard.h"

namespace qlora::trainer {
namespace {

// Tokens of a prompt that go through the model at once.
constexpr int64_t kPromptChunk = 512;

class CachedDecoder : public Decoder {
 public:
  CachedDecoder(const ModelDescription& description,
                const ModelOptions& options, int64_t max_length,
                Workspace workspace)
      : description_(description),
        options_(options),
        parameters_(
            MakeParameters(description_, options_.method, options_.lora)),
        max_length_(max_length),
        workspace_(std::move(workspace)),
        context_(MakeBlockContext(
            description_, ComputeType(options.compute_dtype), workspace_)),
        logits_(description_.vocab_size) {}

  void Reset() override { length_ = 0; }

  absl::StatusOr<std::span<const float>> Append(
      std::span<const int32_t> tokens, BlockSource& weights,
      std::span<const float> params) override;

 private:
  absl::Status Run(std::span<const int32_t> tokens, BlockSource& weights,
                   const BindOptions& bind);
  // Leaves the residual stream after the last block in x_final.
  absl::Status AppendChunk(std::span<const int32_t> tokens, BlockSource& source,
                           const BindOptions& bind, const OuterWeights& outer);
  void ComputeLogits(int64_t rows, const OuterWeights& outer);

  const ModelDescription description_;
  const ModelOptions options_;
  const Parameters parameters_;
  const int64_t max_length_;
  Workspace workspace_;
  const BlockContext context_;
  std::vector<float> logits_;
  int64_t length_ = 0;
};

absl::Status CachedDecoder::AppendChunk(std::span<const int32_t> tokens,
                                        BlockSource& source,
                                        const BindOptions& bind,
                                        const OuterWeights& outer) {
  const auto rows = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> positions(rows);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(length_));
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows)};
  const int layers = description_.num_layers;
  const auto stream = [&](int layer) {
    const bool even = (layers - layer) % 2 == 0;
    return FloatView(even ? workspace_.x_final : workspace_.dx, rows,
                     description_.hidden_size);
  };
  Embedding(tokens, StoredTable(outer.embedding), stream(0));
  for (int layer = 0; layer < layers; ++layer) {
    source.Prefetch(layer);
    ASSIGN_OR_RETURN(const BlockWeights weights, source.Acquire(layer));
    BlockArgs args = BindBlock(bind, layer, weights);
    args.positions = positions;
    args.offsets = offsets;
    args.past = length_;
    args.state = workspace_.shared;
    args.state.x = stream(layer).row<float>(0);
    args.state.k = workspace_.states[layer].k;
    args.state.v = workspace_.states[layer].v;
    BlockForward(context_, args, stream(layer + 1));
    source.Release(layer);
  }
  length_ += rows;
  return absl::OkStatus();
}

void CachedDecoder::ComputeLogits(int64_t rows, const OuterWeights& outer) {
  const LossArgs& buffers = workspace_.loss;
  const View last =
      FloatView(workspace_.x_final, rows, description_.hidden_size)
          .Rows(rows - 1, 1);
  const View normed =
      MakeView(buffers.normed, context_.dtype, 1, description_.hidden_size);
  RmsNorm(last, outer.final_norm, context_.norm_eps, normed, buffers.rstd);
  const View logits =
      MakeView(workspace_.logits, context_.dtype, 1, description_.vocab_size);
  HeadLogits(outer.head, normed, workspace_.block.linear.weight,
             workspace_.weight_elements, logits);
  Convert(logits, FloatView(logits_.data(), 1, description_.vocab_size));
}

absl::Status CachedDecoder::Run(std::span<const int32_t> tokens,
                                BlockSource& weights, const BindOptions& bind) {
  ASSIGN_OR_RETURN(OuterWeights outer, weights.AcquireOuter());
  outer = BindOuter(bind, outer);
  while (!tokens.empty()) {
    const auto n = std::min<size_t>(tokens.size(), kPromptChunk);
    RETURN_IF_ERROR(AppendChunk(tokens.first(n), weights, bind, outer));
    tokens = tokens.subspan(n);
    if (tokens.empty()) ComputeLogits(static_cast<int64_t>(n), outer);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<const float>> CachedDecoder::Append(
    std::span<const int32_t> tokens, BlockSource& weights,
    std::span<const float> params) {
  if (tokens.empty()) {
    return absl::InvalidArgumentError("no tokens to append");
  }
  if (length_ + static_cast<int64_t>(tokens.size()) > max_length_) {
    return absl::OutOfRangeError(
        absl::StrCat(length_, " + ", tokens.size(), " tokens exceed the ",
                     max_length_, " positions of this decoder"));
  }
  if (!params.empty() &&
      static_cast<int64_t>(params.size()) != parameters_.layout.total) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model has ", parameters_.layout.total,
                     " trainable values, got ", params.size()));
  }
  RETURN_IF_ERROR(CheckTokens(description_, tokens));
  BindOptions bind;
  bind.model = &description_;
  bind.parameters = &parameters_;
  bind.lora = &options_.lora;
  bind.params = params;
  RETURN_IF_ERROR(TorchGuard("decoding", [&] {
    const c10::InferenceMode no_autograd;
    return Run(tokens, weights, bind);
  }));
  return std::span<const float>(logits_);
}

WorkspaceOptions SpaceFor(const ModelDescription& description,
                          const ModelOptions& options, int64_t max_length) {
  WorkspaceOptions space;
  space.model = &description;
  space.dtype = ComputeType(options.compute_dtype);
  space.lora_rank = options.lora.rank;
  space.max_tokens = std::min(max_length, kPromptChunk);
  space.layers.resize(description.num_layers);
  space.decode = true;
  space.max_positions = max_length;
  space.threads = NumThreads();
  return space;
}

}  // namespace

int64_t Decoder::WorkspaceBytes(const ModelDescription& description,
                                const ModelOptions& options,
                                int64_t max_length) {
  return Workspace::BytesOf(SpaceFor(description, options, max_length));
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const ModelDescription& description, const ModelOptions& options,
    int64_t max_length) {
  RETURN_IF_ERROR(CheckModelOptions(description, options));
  if (max_length <= 0) {
    return absl::InvalidArgumentError("a decoder needs at least one position");
  }
  ASSIGN_OR_RETURN(Workspace workspace, Workspace::Create(SpaceFor(
                                            description, options, max_length)));
  return std::make_unique<CachedDecoder>(description, options, max_length,
                                         std::move(workspace));
}

}  // namespace qlora::trainer
