#include "worker/trainer/model/model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "c10/core/InferenceMode.h"
#include "common/base/status_macros.h"
#include "worker/trainer/model/block.h"
#include "worker/trainer/model/block_binding.h"
#include "worker/trainer/model/checks.h"
#include "worker/trainer/model/parameters.h"
#include "worker/trainer/model/workspace.h"
#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/loss.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"
#include "worker/trainer/torch_guard.h"

namespace qlora::trainer {
namespace {

// Blocks whose gather is begun before they are needed.
constexpr int kPrefetch = 2;

class DecoderModel : public Model {
 public:
  DecoderModel(const ModelDescription& description, const ModelOptions& options,
               Parameters parameters, std::vector<Reach> reach, int first,
               Workspace workspace)
      : description_(description),
        options_(options),
        parameters_(std::move(parameters)),
        reach_(std::move(reach)),
        first_(first),
        workspace_(std::move(workspace)),
        context_(MakeBlockContext(
            description_, ComputeType(options.compute_dtype), workspace_)) {}

  const TrainableLayout& layout() const override { return parameters_.layout; }
  int64_t workspace_bytes() const override { return workspace_.bytes(); }

  absl::StatusOr<LossSum> ForwardBackward(const MicroBatch& batch,
                                          BlockSource& weights,
                                          std::span<const float> params,
                                          float loss_scale,
                                          const DropoutKey& dropout,
                                          std::span<float> grads) override;
  absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch,
                                   BlockSource& weights,
                                   std::span<const float> params) override;
  absl::Status SkipForwardBackward(BlockSource& weights) override;
  absl::Status SkipEvaluate(BlockSource& weights) override;

 private:
  // One call's inputs.
  struct Pass {
    const MicroBatch& batch;
    BlockSource& weights;
    BindOptions bind;
    bool backward() const { return !bind.grads.empty(); }
  };

  absl::Status Check(const MicroBatch& batch, std::span<const float> params,
                     const float* loss_scale) const;
  Pass MakePass(const MicroBatch& batch, BlockSource& weights,
                std::span<const float> params) const;
  std::span<const uint64_t> RowKeys(const MicroBatch& batch,
                                    const DropoutKey& dropout);
  absl::StatusOr<LossSum> RunForwardBackward(const Pass& pass,
                                             float loss_scale);
  absl::StatusOr<LossSum> RunEvaluate(const Pass& pass);

  // The input of a layer, or the output of the last, float32 [T, hidden].
  View Stream(int layer, const Pass& pass) const;
  BlockArgs MakeArgs(const Pass& pass, int layer,
                     const BlockWeights& weights) const;
  absl::Status Forward(const Pass& pass, const OuterWeights& outer);
  absl::Status Backward(const Pass& pass, const View& dx);
  LossArgs MakeLoss(const Pass& pass, const OuterWeights& outer) const;

  // Calls f for every layer in order with its weights acquired, up or down to
  // the first that is trained. Every rank makes the same sequence.
  template <typename F>
  absl::Status ForwardLayers(BlockSource& source, F f);
  template <typename F>
  absl::Status BackwardLayers(BlockSource& source, F f);
  absl::StatusOr<BlockWeights> Acquire(BlockSource& source, int layer) const {
    const InPhase waiting(options_.clock, Phase::kGather);
    return source.Acquire(layer);
  }

  const ModelDescription description_;
  const ModelOptions options_;
  const Parameters parameters_;
  const std::vector<Reach> reach_;
  // The lowest layer that a backward enters.
  const int first_;
  Workspace workspace_;
  const BlockContext context_;
};

template <typename F>
absl::Status DecoderModel::ForwardLayers(BlockSource& source, F f) {
  const int layers = description_.num_layers;
  if (options_.method == Method::kFull) {
    for (int l = 0; l < layers; ++l) f(l, BlockWeights{});
    return absl::OkStatus();
  }
  for (int l = 0; l < std::min(kPrefetch, layers); ++l) source.Prefetch(l);
  for (int l = 0; l < layers; ++l) {
    ASSIGN_OR_RETURN(const BlockWeights weights, Acquire(source, l));
    if (l + kPrefetch < layers) source.Prefetch(l + kPrefetch);
    f(l, weights);
    source.Release(l);
  }
  return absl::OkStatus();
}

template <typename F>
absl::Status DecoderModel::BackwardLayers(BlockSource& source, F f) {
  const int last = description_.num_layers - 1;
  if (options_.method == Method::kFull) {
    for (int l = last; l >= first_; --l) f(l, BlockWeights{});
    return absl::OkStatus();
  }
  for (int l = last; l > last - kPrefetch && l >= first_; --l) {
    source.Prefetch(l);
  }
  for (int l = last; l >= first_; --l) {
    ASSIGN_OR_RETURN(const BlockWeights weights, Acquire(source, l));
    if (l - kPrefetch >= first_) source.Prefetch(l - kPrefetch);
    f(l, weights);
    source.Release(l);
  }
  return absl::OkStatus();
}

absl::Status DecoderModel::Check(const MicroBatch& batch,
                                 std::span<const float> params,
                                 const float* loss_scale) const {
  if (static_cast<int64_t>(params.size()) != parameters_.layout.total) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model has ", parameters_.layout.total,
                     " trainable values, got ", params.size()));
  }
  if (loss_scale != nullptr && options_.layers.empty()) {
    return absl::FailedPreconditionError("the model was made to evaluate only");
  }
  if (loss_scale != nullptr && !(*loss_scale > 0)) {
    return absl::InvalidArgumentError("the loss scale must be positive");
  }
  return CheckBatch(description_, options_.max_tokens, batch);
}

DecoderModel::Pass DecoderModel::MakePass(const MicroBatch& batch,
                                          BlockSource& weights,
                                          std::span<const float> params) const {
  BindOptions bind;
  bind.model = &description_;
  bind.parameters = &parameters_;
  bind.lora = &options_.lora;
  bind.params = params;
  return {batch, weights, bind};
}

std::span<const uint64_t> DecoderModel::RowKeys(const MicroBatch& batch,
                                                const DropoutKey& dropout) {
  if (options_.lora.dropout == 0) return {};
  const auto keys = workspace_.row_keys.first(batch.tokens.size());
  FillRowKeys(dropout.seed, dropout.step, dropout.document_ids, batch.offsets,
              keys);
  return keys;
}

View DecoderModel::Stream(int layer, const Pass& pass) const {
  const int layers = description_.num_layers;
  float* data = (layers - layer) % 2 == 0 ? workspace_.x_final : workspace_.dx;
  if (pass.backward() && layer >= first_ && layer < layers) {
    data = workspace_.states[layer].x;
  }
  return FloatView(data, static_cast<int64_t>(pass.batch.tokens.size()),
                   description_.hidden_size);
}

BlockArgs DecoderModel::MakeArgs(const Pass& pass, int layer,
                                 const BlockWeights& weights) const {
  BlockArgs args = BindBlock(pass.bind, layer, weights);
  args.positions = pass.batch.positions;
  args.offsets = pass.batch.offsets;
  const bool own = pass.backward() && layer >= first_;
  args.state = own ? workspace_.states[layer] : workspace_.shared;
  args.state.x = Stream(layer, pass).row<float>(0);
  return args;
}

absl::Status DecoderModel::Forward(const Pass& pass,
                                   const OuterWeights& outer) {
  Embedding(pass.batch.tokens, StoredTable(outer.embedding), Stream(0, pass));
  return ForwardLayers(pass.weights,
                       [&](int layer, const BlockWeights& weights) {
                         BlockForward(context_, MakeArgs(pass, layer, weights),
                                      Stream(layer + 1, pass));
                       });
}

absl::Status DecoderModel::Backward(const Pass& pass, const View& dx) {
  return BackwardLayers(
      pass.weights, [&](int layer, const BlockWeights& weights) {
        const BlockArgs args = MakeArgs(pass, layer, weights);
        BlockRecompute(context_, args, options_.layers[layer]);
        BlockBackward(context_, args, reach_[layer], dx);
      });
}

LossArgs DecoderModel::MakeLoss(const Pass& pass,
                                const OuterWeights& outer) const {
  LossArgs loss = workspace_.loss;
  loss.x = Stream(description_.num_layers, pass);
  loss.targets = pass.batch.targets;
  loss.norm = outer.final_norm;
  loss.norm_eps = static_cast<float>(description_.rms_norm_eps);
  loss.head = outer.head;
  return loss;
}

absl::StatusOr<LossSum> DecoderModel::RunForwardBackward(const Pass& pass,
                                                         float loss_scale) {
  const auto grad_at = [&](int64_t place) {
    return place < 0 ? nullptr : pass.bind.grads.data() + place;
  };
  OuterWeights outer;
  if (options_.method != Method::kFull) {
    ASSIGN_OR_RETURN(outer, pass.weights.AcquireOuter());
  }
  outer = BindOuter(pass.bind, outer);
  const InPhase forward(options_.clock, Phase::kForward);
  RETURN_IF_ERROR(Forward(pass, outer));
  const auto rows = static_cast<int64_t>(pass.batch.tokens.size());
  const LossGrads grads = {
      .dx = FloatView(workspace_.dx, rows, description_.hidden_size),
      .dnorm = grad_at(parameters_.final_norm),
      .dhead = grad_at(parameters_.head)};
  LossSum sum;
  sum.tokens = pass.batch.trained_tokens;
  sum.loss = LossBackward(MakeLoss(pass, outer), loss_scale, grads);
  const InPhase backward(options_.clock, Phase::kBackward);
  RETURN_IF_ERROR(Backward(pass, grads.dx));
  if (parameters_.embedding >= 0) {
    EmbeddingBackward(
        pass.batch.tokens, grads.dx,
        FloatView(grad_at(parameters_.embedding), description_.vocab_size,
                  description_.hidden_size));
  }
  return sum;
}

absl::StatusOr<LossSum> DecoderModel::RunEvaluate(const Pass& pass) {
  OuterWeights outer;
  if (options_.method != Method::kFull) {
    ASSIGN_OR_RETURN(outer, pass.weights.AcquireOuter());
  }
  outer = BindOuter(pass.bind, outer);
  RETURN_IF_ERROR(Forward(pass, outer));
  LossSum sum;
  sum.tokens = pass.batch.trained_tokens;
  sum.loss = Loss(MakeLoss(pass, outer));
  return sum;
}

absl::StatusOr<LossSum> DecoderModel::ForwardBackward(
    const MicroBatch& batch, BlockSource& weights,
    std::span<const float> params, float loss_scale, const DropoutKey& dropout,
    std::span<float> grads) {
  RETURN_IF_ERROR(Check(batch, params, &loss_scale));
  if (grads.size() != params.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gradients have ", grads.size(), " values, expected ", params.size()));
  }
  if (options_.lora.dropout > 0 &&
      dropout.document_ids.size() + 1 != batch.offsets.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("dropout names ", dropout.document_ids.size(),
                     " documents, the batch has ", batch.offsets.size() - 1));
  }
  return TorchGuard("forward and backward", [&] {
    const c10::InferenceMode no_autograd;
    Pass pass = MakePass(batch, weights, params);
    pass.bind.grads = grads;
    pass.bind.row_keys = RowKeys(batch, dropout);
    return RunForwardBackward(pass, loss_scale);
  });
}

absl::StatusOr<LossSum> DecoderModel::Evaluate(const MicroBatch& batch,
                                               BlockSource& weights,
                                               std::span<const float> params) {
  RETURN_IF_ERROR(Check(batch, params, nullptr));
  return TorchGuard("evaluation", [&] {
    const c10::InferenceMode no_autograd;
    return RunEvaluate(MakePass(batch, weights, params));
  });
}

absl::Status DecoderModel::SkipForwardBackward(BlockSource& weights) {
  RETURN_IF_ERROR(SkipEvaluate(weights));
  return BackwardLayers(weights, [](int, const BlockWeights&) {});
}

absl::Status DecoderModel::SkipEvaluate(BlockSource& weights) {
  if (options_.method != Method::kFull) {
    RETURN_IF_ERROR(weights.AcquireOuter().status());
  }
  return ForwardLayers(weights, [](int, const BlockWeights&) {});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Create(
    const ModelDescription& description, const ModelOptions& options) {
  RETURN_IF_ERROR(CheckModelOptions(description, options));
  const auto layers = static_cast<int>(options.layers.size());
  if ((layers != 0 && layers != description.num_layers) ||
      options.max_tokens <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the memory plan names ", layers, " layers and ", options.max_tokens,
        " tokens; the model has ", description.num_layers, " layers"));
  }
  Parameters parameters =
      MakeParameters(description, options.method, options.lora);
  if (parameters.layout.total == 0) {
    return absl::InvalidArgumentError(
        "nothing is trainable: lora.target_modules matches no linear layer");
  }
  std::vector<Reach> reach = BackwardReach(parameters);
  const auto first = static_cast<int>(
      std::ranges::find_if(reach,
                           [](Reach r) { return r != Reach::kNothing; }) -
      reach.begin());
  WorkspaceOptions space;
  space.model = &description;
  space.dtype = ComputeType(options.compute_dtype);
  space.lora_rank = options.method == Method::kFull ? 0 : options.lora.rank;
  space.dropout = options.lora.dropout > 0;
  space.max_tokens = options.max_tokens;
  space.layers = options.layers;
  space.first = first;
  space.max_positions = options.max_tokens;
  space.threads = NumThreads();
  ASSIGN_OR_RETURN(Workspace workspace, Workspace::Create(space));
  return std::make_unique<DecoderModel>(description, options,
                                        std::move(parameters), std::move(reach),
                                        first, std::move(workspace));
}

}  // namespace qlora::trainer
