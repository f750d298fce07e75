// Mode GENERATE: text of a base model, with or without an adapter.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"
#include "worker/text/text.h"
#include "worker/trainer/checkpoint/adapter.h"
#include "worker/trainer/data/encoder.h"
#include "worker/trainer/device.h"
#include "worker/trainer/generation_plan.h"
#include "worker/trainer/job_setup.h"
#include "worker/trainer/loaded_model.h"
#include "worker/trainer/model/parameters.h"
#include "worker/trainer/tasks.h"
#include "worker/trainer/text_stream.h"
#include "worker/trainer/token_sampler.h"

namespace qlora::trainer {
namespace {

constexpr int kDefaultNewTokens = 128;

using Tokens = std::vector<int32_t>;

absl::StatusOr<Tokens> EncodeChat(const v1::GenerateRequest& request,
                                  const text::ModelText& text) {
  if (text.chat_template == nullptr) {
    return absl::InvalidArgumentError(
        "the model has no chat template: give a plain prompt");
  }
  RecordJson record = {{"messages", RecordJson::array()}};
  for (const v1::ChatMessage& message : request.messages()) {
    record["messages"].push_back(
        {{"role", message.role()}, {"content", message.content()}});
  }
  RecordJson input = TemplateInput(record);
  input["add_generation_prompt"] = true;
  ASSIGN_OR_RETURN(
      const text::Rendered rendered,
      text.chat_template->Render(
          input.dump(-1, ' ', false, RecordJson::error_handler_t::replace),
          text::Mask::kNone, absl::Now()));
  ASSIGN_OR_RETURN(text::Encoding encoding,
                   text.tokenizer->Encode(rendered.text, false));
  if (encoding.ids.empty()) {
    return absl::InvalidArgumentError(
        "the model's chat template makes an empty prompt of these messages: "
        "correct the messages, or the template");
  }
  return std::move(encoding.ids);
}

absl::StatusOr<std::vector<Tokens>> EncodePrompts(
    const v1::GenerateRequest& request, const text::ModelText& text) {
  std::vector<Tokens> prompts;
  if (request.messages_size() > 0) {
    ASSIGN_OR_RETURN(prompts.emplace_back(), EncodeChat(request, text));
    return prompts;
  }
  std::vector<std::string> texts(request.prompts().begin(),
                                 request.prompts().end());
  if (texts.empty()) texts.push_back(request.prompt());
  for (const std::string& prompt : texts) {
    ASSIGN_OR_RETURN(text::Encoding encoding,
                     text.tokenizer->Encode(prompt, true));
    if (encoding.ids.empty() && text.bos_id) {
      encoding.ids.push_back(*text.bos_id);
    }
    if (encoding.ids.empty()) {
      return absl::InvalidArgumentError(
          "the prompt is empty and the model has no token to begin with");
    }
    prompts.push_back(std::move(encoding.ids));
  }
  return prompts;
}

absl::Status CheckTokens(const Tokens& prompt, const ModelDescription& model) {
  const auto length = static_cast<int64_t>(prompt.size());
  if (length >= model.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", Plural(length, "token"), "; the model takes ",
        model.max_position_embeddings, " with the answer"));
  }
  const int32_t largest = *std::ranges::max_element(prompt);
  if (largest >= model.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tokenizer gave token ", largest, ", but the model has ",
        model.vocab_size, ": this tokenizer is not the model's"));
  }
  return absl::OkStatus();
}

// The base, and the adapter if there is one.
class Generator {
 public:
  Generator(const v1::TrainerTask& task, AgentLink& link)
      : task_(task), request_(task.generate()), link_(link) {}

  absl::Status Load();
  absl::Status Run();

 private:
  absl::Status LoadPrompts(const JobSpec& spec);
  absl::Status LoadWeights(const JobSpec& spec);
  absl::Status LoadAdapter(ModelOptions* options);
  absl::Status Answer(int index, const Tokens& prompt);
  bool IsEnd(int32_t token) const;
  void SendPiece(int index, std::string text, int tokens,
                 const std::string& finish_reason);

  const v1::TrainerTask& task_;
  const v1::GenerateRequest& request_;
  AgentLink& link_;
  ModelDescription model_;
  text::ModelText text_;
  std::vector<Tokens> prompts_;
  size_t longest_ = 0;
  int64_t max_new_tokens_ = 0;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<ShardedBlockSource> weights_;
  std::vector<float> params_;
  std::unique_ptr<Decoder> decoder_;
};

absl::Status Generator::Load() {
  // Without a job the base is taken as it is.
  JobSpec spec;
  spec.method = Method::kLora;
  if (!task_.job_file().empty()) {
    ASSIGN_OR_RETURN(spec, ReadJobSpec(task_));
  }
  ASSIGN_OR_RETURN(model_, ReadModelDescription(task_.model_directory()));
  RETURN_IF_ERROR(LoadPrompts(spec));
  return LoadWeights(spec);
}

absl::Status Generator::LoadPrompts(const JobSpec& spec) {
  ASSIGN_OR_RETURN(text_, LoadJobText(task_, spec));
  ASSIGN_OR_RETURN(prompts_, EncodePrompts(request_, text_));
  for (const Tokens& prompt : prompts_) {
    RETURN_IF_ERROR(CheckTokens(prompt, model_));
    longest_ = std::max(longest_, prompt.size());
  }
  max_new_tokens_ = request_.max_new_tokens() > 0 ? request_.max_new_tokens()
                                                  : kDefaultNewTokens;
  return absl::OkStatus();
}

absl::Status Generator::LoadWeights(const JobSpec& spec) {
  ModelOptions options;
  options.compute_dtype =
      ChooseComputeDtype(spec.train.compute_dtype, HasFastBfloat16());
  if (!task_.adapter_directory().empty()) {
    RETURN_IF_ERROR(LoadAdapter(&options));
  }
  const int64_t positions = std::min<int64_t>(model_.max_position_embeddings,
                                              longest_ + max_new_tokens_);
  ASSIGN_OR_RETURN(
      const SlabOptions slabs,
      PlanGeneration(
          {.model = &model_,
           .slabs = SlabOptionsFor(spec, options.compute_dtype),
           .positions = positions,
           .adapter_bytes = std::ssize(params_) * int64_t{sizeof(float)},
           .workspace_bytes =
               Decoder::WorkspaceBytes(model_, options, positions),
           .budget = task_.memory_bytes()}));
  communicator_ = MakeSingleCommunicator();
  ASSIGN_OR_RETURN(weights_, LoadFrozen(task_.model_directory(), model_, slabs,
                                        *communicator_));
  ASSIGN_OR_RETURN(decoder_, Decoder::Create(model_, options, positions));
  return absl::OkStatus();
}

absl::Status Generator::LoadAdapter(ModelOptions* options) {
  ASSIGN_OR_RETURN(const Adapter adapter,
                   OpenAdapter(task_.adapter_directory()));
  ASSIGN_OR_RETURN(options->lora, LoraOptionsOf(adapter, model_));
  const TrainableLayout layout =
      MakeParameters(model_, options->method, options->lora).layout;
  params_.resize(layout.total);
  return ReadAdapter(adapter, layout, params_);
}

absl::Status Generator::Run() {
  for (size_t i = 0; i < prompts_.size(); ++i) {
    RETURN_IF_ERROR(Answer(static_cast<int>(i), prompts_[i]));
  }
  v1::TrainerEvent done;
  done.mutable_result();
  link_.Send(done);
  return absl::OkStatus();
}

bool Generator::IsEnd(int32_t token) const {
  return std::ranges::find(model_.eos_token_ids, token) !=
             model_.eos_token_ids.end() ||
         text_.eos_id == token;
}

absl::Status Generator::Answer(int index, const Tokens& prompt) {
  TextStream stream([&](std::span<const int32_t> ids) {
    return text_.tokenizer->Decode(ids, /*skip_special_tokens=*/true);
  });
  const SamplingOptions sampling{.temperature = request_.temperature(),
                                 .top_p = request_.top_p(),
                                 .seed = request_.seed()};
  const int64_t room =
      model_.max_position_embeddings - static_cast<int64_t>(prompt.size());
  const auto limit = static_cast<int>(std::min(max_new_tokens_, room));
  decoder_->Reset();
  std::span<const int32_t> next = prompt;
  int32_t token = 0;
  int count = 0;
  std::string finish_reason = "length";
  while (count < limit && !link_.stop_requested()) {
    ASSIGN_OR_RETURN(const std::span<const float> logits,
                     decoder_->Append(next, *weights_, params_));
    const uint64_t draw = static_cast<uint64_t>(index) << 32 | count;
    token = SampleToken(logits, sampling, draw);
    if (IsEnd(token)) {
      finish_reason = "eos";
      break;
    }
    ++count;
    ASSIGN_OR_RETURN(std::string piece, stream.Add(token));
    if (!piece.empty()) SendPiece(index, std::move(piece), count, "");
    next = {&token, 1};
  }
  ASSIGN_OR_RETURN(std::string rest, stream.Flush());
  SendPiece(index, std::move(rest), count, finish_reason);
  return absl::OkStatus();
}

void Generator::SendPiece(int index, std::string text, int tokens,
                          const std::string& finish_reason) {
  v1::TrainerEvent event;
  v1::GenerateResponse& response = *event.mutable_generated();
  response.set_index(index);
  response.set_text(std::move(text));
  response.set_tokens(tokens);
  response.set_finish_reason(finish_reason);
  link_.Send(event);
}

}  // namespace

absl::Status RunGenerate(const v1::TrainerTask& task, AgentLink& link) {
  Generator generator(task, link);
  RETURN_IF_ERROR(generator.Load());
  return generator.Run();
}

}  // namespace qlora::trainer
