#include "server/admission.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/files.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_files.h"
#include "server/core/job_plan.h"
#include "server/core/scheduler.h"
#include "server/lexical_path.h"
#include "server/status_details.h"

namespace qlora::server {
namespace {

constexpr size_t kMaxJobFile = 256 << 10;
constexpr char kModelBase[] = "model.base";
constexpr char kDatasetPrefix[] = "dataset:";
constexpr char kAdapterPrefix[] = "adapter:";
constexpr char kRegistered[] = "is registered";
constexpr char kAllowRoot[] =
    "coordinator and workers allow what they are started with as --model-root";

std::string NewJobId() {
  static constexpr char kDigits[] = "0123456789abcdefghjkmnpqrstvwxyz";
  std::random_device random;
  std::string id = "j-";
  for (int i = 0; i < 12; ++i) id += kDigits[random() % 32];
  return id;
}

bool Has(
    const google::protobuf::RepeatedPtrField<qlora::v1::UploadedInput>& inputs,
    const std::string& path) {
  return std::any_of(inputs.begin(), inputs.end(),
                     [&](const auto& input) { return input.path() == path; });
}

bool LexicallyBeneath(const std::string& path,
                      const std::vector<std::string>& roots) {
  qlora::v1::Node node;
  *node.mutable_model_roots() = {roots.begin(), roots.end()};
  return NodeSeesDirectory(node, path);
}

// The name and those that there are, most alike first: "no dataset "x" is
// registered; there are y and z".
template <typename T>
std::string NoSuch(absl::string_view what, const std::string& name,
                   absl::string_view where,
                   const std::map<std::string, T>& all) {
  constexpr size_t kMaxShown = 8;
  std::vector<std::pair<size_t, std::string>> names;
  for (const auto& [other, value] : all) {
    const auto differs =
        std::mismatch(name.begin(), name.end(), other.begin(), other.end());
    names.emplace_back(name.end() - differs.first, other);
  }
  std::sort(names.begin(), names.end());
  std::string text = absl::StrCat("no ", what, " \"", name, "\" ", where);
  for (size_t i = 0; i < names.size() && i < kMaxShown; ++i) {
    absl::StrAppend(&text, i == 0 ? "; there are " : ", ", names[i].second);
  }
  if (names.size() > kMaxShown) {
    absl::StrAppend(&text, " and ", names.size() - kMaxShown, " more");
  }
  return text;
}

// What the spec says, as users see the job.
qlora::v1::Job MakeView(const JobSpec& spec, const std::string& job_file) {
  qlora::v1::Job view;
  view.set_job_id(NewJobId());
  view.set_name(spec.name);
  view.set_project(spec.project);
  for (const auto& [key, value] : spec.labels) {
    (*view.mutable_labels())[key] = value;
  }
  view.set_priority(spec.priority);
  view.set_job_file(job_file);
  view.set_resolved_job_file(ResolvedJobFile(spec));
  view.set_method(std::string(MethodName(spec.method)));
  return view;
}

// InvalidArgument if a name in the job file is no module of the model.
absl::Status CheckTargetModules(const JobPlan& plan) {
  if (!plan.model || plan.spec.method == Method::kFull) {
    return absl::OkStatus();
  }
  const absl::Status status =
      MatchTargetModules(*plan.model, plan.spec.lora.target_modules).status();
  if (status.ok()) return status;
  constexpr absl::string_view kField = "lora.target_modules";
  absl::string_view message = status.message();
  absl::ConsumePrefix(&message, absl::StrCat(kField, ": "));
  return FieldError(std::string(kField), std::string(message));
}

bool NeedsTokenizer(const JobSpec& spec) {
  const auto needs = [](const DataSource& source) {
    return source.format != DataFormat::kTokens;
  };
  return std::any_of(spec.data.train.begin(), spec.data.train.end(), needs) ||
         std::any_of(spec.data.eval.begin(), spec.data.eval.end(), needs);
}

// "data.train[0] (chats.jsonl)": the first of format chat; empty without one.
std::string FirstChatSource(const JobSpec::Data& data) {
  const auto find = [](const char* key, const std::vector<DataSource>& all) {
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].format != DataFormat::kChat) continue;
      return absl::StrCat(key, "[", i, "] (", all[i].path, ")");
    }
    return std::string();
  };
  const std::string train = find("data.train", data.train);
  return train.empty() ? find("data.eval", data.eval) : train;
}

// Whether a tokenizer_config.json names a template; in doubt it does, and a
// worker says what is wrong with it.
bool HasChatTemplate(const std::string& tokenizer_config) {
  const auto json = nlohmann::json::parse(tokenizer_config, nullptr,
                                          /*allow_exceptions=*/false);
  if (!json.is_object()) return true;
  const auto it = json.find("chat_template");
  return it != json.end() && !it->empty() &&
         (!it->is_string() || !it->get_ref<const std::string&>().empty());
}

// InvalidArgument if a worker could not be told to prepare the job.
absl::Status CheckSize(const Job& job) {
  size_t bytes =
      job.job().resolved_job_file().size() + job.record.model().ByteSizeLong();
  for (const auto& input : job.record.inputs()) bytes += input.ByteSizeLong();
  if (bytes <= kMaxJobBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the job file and the names of the files that it needs take ", bytes,
      " bytes; at most ", kMaxJobBytes,
      " can be sent to a worker: put the data into fewer files"));
}

bool EndedWithAdapter(const Job& job, const std::string& project) {
  return job.job().state() == qlora::v1::JOB_STATE_SUCCEEDED &&
         job.job().project() == project && job.plan->error.ok() &&
         job.plan->spec.method != Method::kFull;
}

// Jobs of the project by the name of their adapter; of several the last.
std::map<std::string, const Job*> NewestAdapters(const State& state,
                                                 const std::string& project) {
  std::map<std::string, const Job*> newest;
  for (const auto& [id, job] : state.jobs) {
    if (!EndedWithAdapter(job, project)) continue;
    const Job*& last = newest[job.plan->spec.output_name()];
    if (last == nullptr || FromProto(last->job().finish_time()) <
                               FromProto(job.job().finish_time())) {
      last = &job;
    }
  }
  return newest;
}

// The files of the newest adapter of that name, or of the job with that id.
// NotFound names those that there are.
absl::StatusOr<google::protobuf::RepeatedPtrField<qlora::v1::ArtifactFile>>
FindAdapter(const State& state, const std::string& project,
            const std::string& name) {
  const auto adapters = NewestAdapters(state, project);
  const auto named = adapters.find(name);
  if (named != adapters.end()) return named->second->job().output();
  const auto job = state.jobs.find(name);
  if (job != state.jobs.end() && EndedWithAdapter(job->second, project)) {
    return job->second.job().output();
  }
  return absl::NotFoundError(absl::StrCat(
      NoSuch("adapter", name, absl::StrCat("in project ", project), adapters),
      "; name one by output.name, or a finished lora or qlora job by id, or a "
      "directory beside the job file"));
}

}  // namespace

absl::StatusOr<Job> Admission::Admit(const std::string& job_file,
                                     const Inputs& inputs) const {
  if (job_file.size() > kMaxJobFile) {
    return FieldError("job_file",
                      absl::StrCat("has ", job_file.size(), " bytes, at most ",
                                   kMaxJobFile, " are allowed"));
  }
  const ParsedJob parsed = ParseJobFile(job_file);
  if (!parsed.errors.empty()) return JobFileError(parsed.errors);
  const JobSpec& spec = parsed.spec;
  Job job;
  job.mutable_job() = MakeView(spec, job_file);
  *job.record.mutable_inputs() = inputs;
  RETURN_IF_ERROR(ResolveInputs(spec, *job.record.mutable_inputs()));
  ASSIGN_OR_RETURN(
      ResolvedModel model,
      ResolveModel(spec.model.base, !spec.model.random_init, kModelBase));
  *job.record.mutable_model() = std::move(model.source);
  job.record.set_model_config(std::move(model.config_json));
  ASSIGN_OR_RETURN(*job.record.mutable_adapter_config(),
                   ReadAdapterConfig(spec, job.record.inputs()));
  ASSIGN_OR_RETURN(job.plan, MakePlan(job.record));
  RETURN_IF_ERROR(CheckTargetModules(*job.plan));
  RETURN_IF_ERROR(CheckTokenizerOf(*job.plan, job.record.model()));
  RETURN_IF_ERROR(CheckChatTemplateOf(*job.plan, job.record.model()));
  RETURN_IF_ERROR(CheckSize(job));
  return job;
}

// Of lora.init_adapter; empty without one, or if only workers can see it.
absl::StatusOr<std::string> Admission::ReadAdapterConfig(
    const JobSpec& spec, const Inputs& inputs) const {
  constexpr char kName[] = "adapter_config.json";
  const std::string& adapter = spec.lora.init_adapter;
  const auto input =
      std::find_if(inputs.begin(), inputs.end(),
                   [&](const auto& i) { return i.path() == adapter; });
  absl::StatusOr<std::string> text;
  if (adapter.empty()) return std::string();
  if (input != inputs.end()) {
    text = ReadUploaded(input->files(), kName, kMaxJsonBytes);
  } else if (CheckDirectory(adapter).ok()) {
    text =
        ReadFile(absl::StrCat(LexicalPath(adapter), "/", kName), kMaxJsonBytes);
  } else {
    return std::string();
  }
  JobSpec adapted = spec;
  const absl::Status status =
      text.ok() ? TakeFromAdapter(*text, adapted) : text.status();
  if (status.ok()) return text;
  return FieldError(
      "lora.init_adapter",
      absl::StrCat(
          adapter, ": ",
          absl::IsNotFound(status)
              ? absl::StrCat("has no ", kName, ", which every PEFT adapter has")
              : std::string(status.message())));
}

// What a node would find out first, if the model can be seen from here.
absl::Status Admission::CheckTokenizerOf(
    const JobPlan& plan, const qlora::v1::ModelSource& model) const {
  if (!plan.model || !NeedsTokenizer(plan.spec)) return absl::OkStatus();
  constexpr char kName[] = "tokenizer.json";
  const absl::StatusOr<std::string> text =
      ReadOf(model, kName, kMaxTokenizerBytes);
  if (absl::IsNotFound(text.status())) {
    return FieldError("model.base",
                      absl::StrCat(model.name(), " has no ", kName,
                                   ", which data of every format but tokens "
                                   "needs"));
  }
  RETURN_IF_ERROR(text.status());
  const absl::Status fits = CheckTokenizer(*text, *plan.model);
  if (fits.ok()) return fits;
  return FieldError("model.base",
                    absl::StrCat(model.name(), ": ", fits.message()));
}

absl::Status Admission::CheckChatTemplateOf(
    const JobPlan& plan, const qlora::v1::ModelSource& model) const {
  const JobSpec::Data& data = plan.spec.data;
  if (!plan.model || !data.chat_template.empty()) return absl::OkStatus();
  const std::string chat = FirstChatSource(data);
  if (chat.empty()) return absl::OkStatus();
  for (const char* name : {"chat_template.jinja", "tokenizer_config.json"}) {
    const absl::StatusOr<std::string> text = ReadOf(model, name, kMaxJsonBytes);
    if (absl::IsNotFound(text.status())) continue;
    RETURN_IF_ERROR(text.status());
    if (absl::StrContains(name, ".jinja") ? !text->empty()
                                          : HasChatTemplate(*text)) {
      return absl::OkStatus();
    }
  }
  return FieldError("data.chat_template",
                    absl::StrCat("is needed: ", chat, " has format chat, but ",
                                 model.name(), " has no chat template"));
}

absl::StatusOr<std::string> Admission::ReadOf(
    const qlora::v1::ModelSource& model, const std::string& name,
    size_t max_bytes) const {
  return model.directory().empty()
             ? ReadUploaded(model.files(), name, max_bytes)
             : ReadFile(absl::StrCat(model.directory(), "/", name), max_bytes);
}

absl::StatusOr<std::string> Admission::ReadUploaded(
    const google::protobuf::RepeatedPtrField<qlora::v1::ArtifactFile>& files,
    const std::string& name, size_t max_bytes) const {
  for (const auto& file : files) {
    if (file.path() != name) continue;
    if (file.size_bytes() > static_cast<int64_t>(max_bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " has ", file.size_bytes(), " bytes; at most ",
                       max_bytes, " are read"));
    }
    ASSIGN_OR_RETURN(const std::string path, artifacts_->PathOf(file.sha256()));
    return ReadFile(path, max_bytes);
  }
  return absl::NotFoundError(absl::StrCat("the model has no ", name));
}

absl::Status Admission::CheckUploaded(
    const google::protobuf::RepeatedPtrField<qlora::v1::ArtifactFile>& files)
    const {
  std::set<std::string> paths;
  for (const auto& file : files) {
    if (!IsSafeRelativePath(file.path()) || !paths.insert(file.path()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("file path \"", file.path(),
                       "\" must be relative, without .., and named once"));
    }
    ASSIGN_OR_RETURN(const auto info, artifacts_->Stat(file.sha256()));
    if (!info.complete || info.size_bytes != file.size_bytes()) {
      return absl::FailedPreconditionError(
          absl::StrCat(file.path(), " (", file.sha256(), ", ",
                       file.size_bytes(), " bytes) is not uploaded"));
    }
  }
  return absl::OkStatus();
}

absl::Status Admission::ResolveInputs(const JobSpec& spec,
                                      Inputs& inputs) const {
  for (const auto& input : inputs) {
    if (input.path().empty() || input.files().empty()) {
      return absl::InvalidArgumentError(
          "inputs: each has a path and at least one file");
    }
    RETURN_IF_ERROR(CheckUploaded(input.files()));
  }
  for (size_t i = 0; i < spec.data.train.size(); ++i) {
    RETURN_IF_ERROR(ResolveInput(spec, absl::StrCat("data.train[", i, "].path"),
                                 spec.data.train[i].path, inputs));
  }
  for (size_t i = 0; i < spec.data.eval.size(); ++i) {
    RETURN_IF_ERROR(ResolveInput(spec, absl::StrCat("data.eval[", i, "].path"),
                                 spec.data.eval[i].path, inputs));
  }
  if (!spec.lora.init_adapter.empty()) {
    RETURN_IF_ERROR(ResolveInput(spec, "lora.init_adapter",
                                 spec.lora.init_adapter, inputs));
  }
  const std::string& chat_template = spec.data.chat_template;
  // A template's own text has braces; a path has none.
  if (!chat_template.empty() && !absl::StrContains(chat_template, "{") &&
      !Has(inputs, chat_template)) {
    return FieldError("data.chat_template",
                      absl::StrCat(chat_template,
                                   " was not uploaded: no such file beside the "
                                   "job file"));
  }
  return absl::OkStatus();
}

absl::Status Admission::ResolveInput(const JobSpec& spec,
                                     const std::string& field,
                                     const std::string& path,
                                     Inputs& inputs) const {
  if (Has(inputs, path)) return absl::OkStatus();
  qlora::v1::UploadedInput input;
  input.set_path(path);
  std::string missing;
  coordinator_->Read([&](const State& state) {
    if (absl::StartsWith(path, kDatasetPrefix)) {
      const std::string name = path.substr(sizeof(kDatasetPrefix) - 1);
      const auto it = state.datasets.find(name);
      if (it != state.datasets.end()) {
        *input.add_files() = it->second.file();
      } else {
        missing = absl::StrCat(
            NoSuch("dataset", name, kRegistered, state.datasets),
            "; `qloractl dataset push FILE --name ", name, "` adds it");
      }
    } else if (absl::StartsWith(path, kAdapterPrefix)) {
      auto files = FindAdapter(state, spec.project,
                               path.substr(sizeof(kAdapterPrefix) - 1));
      if (files.ok()) {
        *input.mutable_files() = *std::move(files);
      } else {
        missing = std::string(files.status().message());
      }
    }
  });
  if (!input.files().empty()) {
    *inputs.Add() = std::move(input);
    return absl::OkStatus();
  }
  if (!missing.empty()) return FieldError(field, missing);
  if (absl::StartsWith(path, "/")) {
    const std::vector<std::string> roots = AllRoots();
    if (LexicallyBeneath(LexicalPath(path), roots)) return absl::OkStatus();
    return FieldError(
        field, absl::StrCat(path,
                            " was not uploaded (qloractl sees no such file) "
                            "and is under none of the model roots (",
                            absl::StrJoin(roots, ", "), "); ", kAllowRoot));
  }
  return FieldError(field, absl::StrCat(path,
                                        " was not uploaded: no such file "
                                        "beside the job file"));
}

std::vector<std::string> Admission::AllRoots() const {
  std::set<std::string> roots(model_roots_.begin(), model_roots_.end());
  coordinator_->Read([&](const State& state) {
    for (const auto& [name, node] : state.nodes) {
      const auto& more = node.record.node().model_roots();
      roots.insert(more.begin(), more.end());
    }
  });
  return {roots.begin(), roots.end()};
}

absl::Status Admission::CheckDirectory(const std::string& directory) const {
  if (!absl::StartsWith(directory, "/")) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, " is not an absolute path"));
  }
  const std::string roots =
      model_roots_.empty() ? "none" : absl::StrJoin(model_roots_, ", ");
  const std::string path = LexicalPath(directory);
  std::error_code error;
  if (LexicallyBeneath(path, model_roots_) &&
      !std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, ": no such directory"));
  }
  if (IsBeneathOneOf(path, model_roots_)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(directory, " is under none of the model roots (", roots,
                   "); ", kAllowRoot));
}

absl::StatusOr<ResolvedModel> Admission::ResolveDirectory(
    const std::string& directory, bool weights,
    const std::string& field) const {
  const std::string path = LexicalPath(directory);
  ResolvedModel model;
  model.source.set_name(directory);
  model.source.set_directory(path);
  const absl::Status mine = CheckDirectory(path);
  if (!mine.ok()) {
    bool any_node = false, seen = false;
    coordinator_->Read([&](const State& state) {
      for (const auto& [name, node] : state.nodes) {
        any_node = true;
        seen |= NodeSeesDirectory(node.record.node(), path);
      }
    });
    const bool exists_here = LexicallyBeneath(path, model_roots_);
    if (exists_here || (any_node && !seen)) {
      return FieldError(field, std::string(mine.message()));
    }
    return model;
  }
  const auto description = ReadModelDescription(path);
  if (!description.ok()) {
    return FieldError(field, std::string(description.status().message()));
  }
  if (weights) {
    const auto tensors = SafetensorsReader::OpenModel(path);
    if (!tensors.ok()) {
      return FieldError(field, std::string(tensors.status().message()));
    }
    const absl::Status complete = CheckModelTensors(
        *description,
        [&](const std::string& name) { return (*tensors)->Find(name); });
    if (!complete.ok()) {
      return FieldError(field, absl::StrCat(path, ": ", complete.message()));
    }
  }
  ASSIGN_OR_RETURN(model.config_json,
                   ReadFile(absl::StrCat(path, "/config.json"), kMaxJsonBytes));
  return model;
}

// Where a model of that name may be instead.
std::string Admission::NameElsewhere(const std::string& base) const {
  const std::vector<std::string> roots = AllRoots();
  for (const std::string& root : roots) {
    const std::string path = LexicalPath(absl::StrCat(root, "/", base));
    std::error_code error;
    if (IsSafeRelativePath(base) && IsBeneathOneOf(path, model_roots_) &&
        std::filesystem::exists(path + "/config.json", error)) {
      return absl::StrCat("name its directory: ", path);
    }
  }
  return absl::StrCat("`qloractl model import DIR --name ", base,
                      "` adds it, or name a directory below a model root (",
                      roots.empty() ? "none" : absl::StrJoin(roots, ", "), ")");
}

absl::StatusOr<ResolvedModel> Admission::ResolveModel(
    const std::string& base, bool weights, const std::string& field) const {
  if (absl::StartsWith(base, "/")) {
    return ResolveDirectory(base, weights, field);
  }
  std::optional<qlora::v1::Model> found;
  std::string missing;
  coordinator_->Read([&](const State& state) {
    const auto it = state.models.find(base);
    if (it != state.models.end()) {
      found = it->second;
    } else {
      missing = NoSuch("model", base, kRegistered, state.models);
    }
  });
  if (!found) {
    return FieldError(
        field,
        absl::StrCat(missing,
                     field == kModelBase
                         ? ", and no such directory exists beside the job file"
                         : "",
                     "; ", NameElsewhere(base)));
  }
  if (!found->directory().empty()) {
    ASSIGN_OR_RETURN(ResolvedModel model,
                     ResolveDirectory(found->directory(), weights, field));
    model.source.set_name(base);
    return model;
  }
  ResolvedModel model;
  model.source.set_name(base);
  *model.source.mutable_files() = found->files();
  model.config_json = found->config_json();
  return model;
}

}  // namespace qlora::server
