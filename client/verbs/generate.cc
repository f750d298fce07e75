#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/job_calls.h"
#include "client/stream.h"
#include "client/verbs.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

// Prompts from the command line, or the lines of standard input.
absl::StatusOr<std::vector<std::string>> Prompts(
    const GenerateOptions& options) {
  std::vector<std::string> prompts = options.prompts;
  if (prompts.empty()) {
    const std::string text(std::istreambuf_iterator<char>(std::cin), {});
    prompts = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  }
  if (prompts.empty()) return UsageError("generate: no prompt");
  return prompts;
}

v1::GenerateRequest MakeRequest(const Session& session,
                                const GenerateOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  request.set_job(options.job);
  request.set_project(session.project);
  request.set_max_new_tokens(options.max_new_tokens);
  request.set_temperature(options.temperature);
  request.set_top_p(options.top_p);
  request.set_seed(options.seed);
  return request;
}

// One call; each piece goes to `piece` as it comes.
absl::Status Run(
    Session& session, const v1::GenerateRequest& request,
    const std::function<absl::Status(const v1::GenerateResponse&)>& piece) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTaskDeadline));
  const auto reader = session.connection().jobs().Generate(&context, request);
  absl::Status printed;
  const grpc::Status status =
      ReadStream<v1::GenerateResponse>(context, *reader, piece, &printed);
  RETURN_IF_ERROR(printed);
  return JobError(
      WithRemedy(session, session.connection().ToStatus(status),
                 {request.model()}),
      request.model().empty()
          ? "cannot generate"
          : absl::StrCat("cannot generate with --model ", request.model()));
}

struct Answer {
  std::string text;
  std::string finish_reason;
  int tokens = 0;
};

// All answers of a request, by prompt; `live` gets the pieces meanwhile.
absl::StatusOr<std::vector<Answer>> Collect(Session& session,
                                            const v1::GenerateRequest& request,
                                            size_t count, std::ostream* live) {
  std::vector<Answer> answers(count);
  RETURN_IF_ERROR(Run(
      session, request, [&](const v1::GenerateResponse& piece) -> absl::Status {
        const auto index = static_cast<size_t>(piece.index());
        if (index >= count) {
          return absl::InternalError("the server answers more than was asked");
        }
        answers[index].text += piece.text();
        if (live != nullptr) *live << piece.text() << std::flush;
        if (!piece.finish_reason().empty()) {
          answers[index].finish_reason = piece.finish_reason();
          answers[index].tokens = piece.tokens();
        }
        return absl::OkStatus();
      }));
  return answers;
}

// Plain prompts travel together, so that the model is loaded once; a chat is
// one conversation a call.
absl::StatusOr<std::vector<Answer>> Answers(
    Session& session, const GenerateOptions& options,
    const std::vector<std::string>& prompts, bool without_adapter,
    std::ostream* live) {
  v1::GenerateRequest request = MakeRequest(session, options);
  request.set_without_adapter(without_adapter);
  if (!options.chat) {
    request.mutable_prompts()->Assign(prompts.begin(), prompts.end());
    return Collect(session, request, prompts.size(), live);
  }
  std::vector<Answer> answers;
  for (const std::string& prompt : prompts) {
    request.clear_messages();
    v1::ChatMessage* message = request.add_messages();
    message->set_role("user");
    message->set_content(prompt);
    ASSIGN_OR_RETURN(const std::vector<Answer> answer,
                     Collect(session, request, 1, live));
    answers.push_back(answer[0]);
  }
  return answers;
}

struct Variant {
  // "base" or "adapter"; empty when there is only one.
  std::string name;
  std::vector<Answer> answers;
};

void PrintText(std::ostream& out, const std::vector<std::string>& prompts,
               const std::vector<Variant>& variants) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    out << (i > 0 ? "\n" : "") << "> " << prompts[i] << "\n";
    for (const Variant& variant : variants) {
      if (!variant.name.empty()) out << variant.name << ": ";
      out << absl::StripAsciiWhitespace(variant.answers[i].text) << "\n";
    }
  }
}

// Why an answer is shorter than was asked for.
void NoteShortened(const std::vector<Variant>& variants, int max_new_tokens) {
  for (const Variant& variant : variants) {
    for (size_t i = 0; i < variant.answers.size(); ++i) {
      const Answer& answer = variant.answers[i];
      if (answer.finish_reason != "length") continue;
      if (answer.tokens >= max_new_tokens) continue;
      std::cerr << "note: "
                << (variant.answers.size() > 1
                        ? absl::StrCat("answer ", i + 1, " ")
                        : "")
                << "stopped after " << Plural(answer.tokens, "token")
                << ": the model's context is full\n";
    }
  }
}

// One object an answer.
absl::Status PrintAnswers(const Output& output,
                          const std::vector<std::string>& prompts,
                          const std::vector<Variant>& variants) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (size_t i = 0; i < prompts.size(); ++i) {
    for (const Variant& variant : variants) {
      const Answer& answer = variant.answers[i];
      nlohmann::ordered_json object = {{"prompt", prompts[i]}};
      if (!variant.name.empty()) object["variant"] = variant.name;
      object["text"] = answer.text;
      object["finishReason"] = answer.finish_reason;
      object["tokens"] = answer.tokens;
      all.push_back(std::move(object));
    }
  }
  if (output.format != OutputFormat::kJsonl) {
    return PrintJson(output, all.dump());
  }
  for (const auto& object : all) *output.out << object.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace

absl::Status Generate(Session& session, const GenerateOptions& options) {
  if (options.job.empty() == options.model.empty()) {
    return UsageError("generate: give either --job or --model");
  }
  if (session.output.format == OutputFormat::kName) {
    return UsageError("generate: -o is table, json, jsonl or yaml");
  }
  if (options.compare && options.job.empty()) {
    return UsageError("generate: --compare needs --job");
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> prompts, Prompts(options));
  std::ostream& out = *session.output.out;
  const bool table = session.output.format == OutputFormat::kTable ||
                     session.output.format == OutputFormat::kWide;
  const bool live = table && prompts.size() == 1 && !options.compare;
  std::vector<Variant> variants;
  if (options.compare) {
    ASSIGN_OR_RETURN(std::vector<Answer> base,
                     Answers(session, options, prompts, true, nullptr));
    variants.push_back({"base", std::move(base)});
  }
  ASSIGN_OR_RETURN(
      std::vector<Answer> answers,
      Answers(session, options, prompts, options.no_adapter && !options.compare,
              live ? &out : nullptr));
  variants.push_back({options.compare ? "adapter" : "", std::move(answers)});
  if (live) {
    out << std::endl;
  } else if (table) {
    PrintText(out, prompts, variants);
  } else {
    return PrintAnswers(session.output, prompts, variants);
  }
  NoteShortened(variants, options.max_new_tokens);
  return absl::OkStatus();
}

}  // namespace qlora::client
