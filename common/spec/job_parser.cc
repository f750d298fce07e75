// ParseJobFile: walks the YAML along the key table, then checks what no single
// key can tell.
#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/formats/yaml_tree.h"
#include "common/spec/job_keys.h"
#include "common/spec/job_spec.h"

namespace qlora {
namespace {

constexpr char kApiVersion[] = "qlora/v1";

struct Place {
  int line = 0;
  int column = 0;
};

class Parser {
 public:
  explicit Parser(ParsedJob& job) : job_(job), spec_(job.spec) {}

  void Parse(std::string_view yaml,
             const std::vector<std::string>& assignments);

 private:
  void ReadMap(const YamlNode& map, const std::string& section);
  void ReadEntry(const YamlNode::Entry& entry, const std::string& path);
  void ReadKey(const JobKey& key, const YamlNode& value, Place place);
  void ReadApiVersion(const YamlNode::Entry& entry);

  void LeaveToAdapter();
  void CheckRequired();
  void CheckNames();
  void CheckMethod();
  void CheckData();
  void CheckTrain();
  void CheckPaths();

  bool Given(std::string_view path) const {
    return given_.contains(std::string(path));
  }
  // The error stands where the key does, if it was given.
  void Fail(const std::string& path, std::string message) {
    const auto it = given_.find(path);
    const Place place = it == given_.end() ? Place{} : it->second;
    job_.errors.push_back({path, place.line, place.column, std::move(message)});
  }

  ParsedJob& job_;
  JobSpec& spec_;
  // Keys that the file has, with their place.
  std::map<std::string, Place> given_;
};

// Whether the assignment set what the path names, or something in or around it.
bool Sets(const std::string& assignment, const std::string& path) {
  const auto dotted = [](const std::string& text) {
    return absl::StrReplaceAll(text, {{"[", "."}, {"]", ""}}) + ".";
  };
  const std::string key = dotted(assignment.substr(0, assignment.find('=')));
  const std::string wanted = dotted(path);
  return absl::StartsWith(key, wanted) || absl::StartsWith(wanted, key);
}

void Parser::Parse(std::string_view yaml,
                   const std::vector<std::string>& assignments) {
  YamlDocument document = ParseYaml(yaml);
  for (const YamlError& error : document.errors) {
    job_.errors.push_back({"", error.line, error.column, error.message});
  }
  if (!job_.errors.empty()) return;
  if (auto error = AssignKeys(document.root, assignments)) {
    job_.errors.push_back(*std::move(error));
    return;
  }
  if (!document.root.is_map()) {
    job_.errors.push_back(
        {"", document.root.line, document.root.column,
         "a job file is a map of keys; it begins with 'apiVersion: qlora/v1'"});
    return;
  }
  ReadMap(document.root, "");
  LeaveToAdapter();
  CheckRequired();
  CheckNames();
  CheckMethod();
  CheckData();
  CheckTrain();
  CheckPaths();
  for (SpecError& error : job_.errors) {
    for (const std::string& assignment : assignments) {
      if (error.line == 0 && Sets(assignment, error.path)) {
        error.flag = SetFlag(assignment);
      }
    }
  }
  std::stable_sort(job_.errors.begin(), job_.errors.end(),
                   [](const SpecError& a, const SpecError& b) {
                     return std::pair(a.line, a.column) <
                            std::pair(b.line, b.column);
                   });
}

void Parser::ReadMap(const YamlNode& map, const std::string& section) {
  for (const YamlNode::Entry& entry : map.entries) {
    ReadEntry(entry, section.empty() ? entry.key : section + "." + entry.key);
  }
}

void Parser::ReadEntry(const YamlNode::Entry& entry, const std::string& path) {
  const Place place = {entry.line, entry.column};
  if (path == "apiVersion") return ReadApiVersion(entry);
  if (const JobKey* key = FindJobKey(path)) {
    return ReadKey(*key, entry.value, place);
  }
  if (path == "model" && entry.value.is_scalar()) {
    return ReadKey(*FindJobKey("model.base"), entry.value, place);
  }
  if (!IsJobSection(path)) {
    const std::string shown = path.substr(0, 200);
    const std::string suggestion = SuggestJobKey(path);
    job_.errors.push_back(
        {shown, place.line, place.column,
         absl::StrCat("unknown key", suggestion.empty()
                                         ? "; 'qloractl explain' lists all keys"
                                         : absl::StrCat("; did you mean '",
                                                        suggestion, "'?"))});
    return;
  }
  if (entry.value.is_map()) return ReadMap(entry.value, path);
  if (entry.value.is_null()) return;
  job_.errors.push_back({path, place.line, place.column,
                         absl::StrCat("must be a map of keys, as 'qloractl "
                                      "explain ",
                                      path, "' lists them")});
}

void Parser::ReadKey(const JobKey& key, const YamlNode& value, Place place) {
  const std::string path(key.path);
  given_[path] = place;
  if (value.is_null()) {
    return Fail(path, "has no value; give one or remove the key");
  }
  for (const KeyError& error : SetJobKey(key, value, spec_)) {
    job_.errors.push_back({path + error.subpath, error.at->line,
                           error.at->column, error.message});
  }
}

void Parser::ReadApiVersion(const YamlNode::Entry& entry) {
  given_["apiVersion"] = {entry.line, entry.column};
  if (entry.value.is_scalar() && entry.value.text == kApiVersion) return;
  job_.errors.push_back({"apiVersion", entry.line, entry.column,
                         absl::StrCat("must be ", kApiVersion)});
}

void Parser::LeaveToAdapter() {
  if (spec_.lora.init_adapter.empty()) return;
  for (const char* key :
       {"lora.rank", "lora.alpha", "lora.target_modules", "lora.use_rslora"}) {
    if (!Given(key)) spec_.lora.from_adapter.insert(key);
  }
}

void Parser::CheckRequired() {
  if (!Given("apiVersion")) {
    Fail("apiVersion",
         absl::StrCat("is required: begin the file with 'apiVersion: ",
                      kApiVersion, "'"));
  }
  for (const JobKey& key : JobKeys()) {
    if (!key.required || Given(key.path)) continue;
    Fail(std::string(key.path),
         absl::StrCat("is required: ", std::string(key.help)));
  }
}

// Names become directory names, labels and addresses.
bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= 63 &&
         absl::ascii_isalnum(name.front()) &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

void Parser::CheckNames() {
  constexpr char kRule[] =
      "must begin with a letter or digit and have only letters, digits, '.', "
      "'_' and '-', at most 63 in all";
  if (Given("name") && !IsName(spec_.name)) Fail("name", kRule);
  if (!IsName(spec_.project)) Fail("project", kRule);
  if (Given("output.name") && !IsName(spec_.output.name)) {
    Fail("output.name", kRule);
  }
}

void Parser::CheckMethod() {
  const std::string method(MethodName(spec_.method));
  for (const auto& [path, place] : given_) {
    const bool lora = absl::StartsWith(path, "lora.");
    const bool quantization = absl::StartsWith(path, "quantization.");
    if (lora && spec_.method == Method::kFull) {
      Fail(path,
           "means nothing with method full, which trains all weights; "
           "remove it or choose method qlora or lora");
    } else if (quantization && spec_.method != Method::kQlora) {
      Fail(path, absl::StrCat("means nothing with method ", method,
                              ", whose base is not quantized; remove it or "
                              "choose method qlora"));
    } else if (path == "output.formats" && spec_.method == Method::kFull) {
      Fail(path, "means nothing with method full, which ends in a whole model");
    }
  }
  if (spec_.model.random_init && spec_.method != Method::kFull) {
    Fail("model.init",
         "random needs method full: an adapter over random "
         "weights is of no use");
  }
  const int block = spec_.quantization.block_size;
  if ((block & (block - 1)) != 0) {
    Fail("quantization.block_size",
         absl::StrCat("must be a power of two, not ", block));
  }
}

void Parser::CheckData() {
  const JobSpec::Data& data = spec_.data;
  if (!data.eval.empty() && data.eval_fraction > 0) {
    Fail("data.eval_fraction",
         "cannot stand beside data.eval: give one evaluation set");
  }
  if (!spec_.eval.every.never() && !Given("data.eval") &&
      data.eval_fraction == 0) {
    Fail("eval.every",
         "needs an evaluation set: data.eval or "
         "data.eval_fraction");
  }
  const auto is_chat = [](const DataSource& source) {
    return source.format == DataFormat::kChat;
  };
  if (!data.chat_template.empty() && Given("data.train") &&
      std::none_of(data.train.begin(), data.train.end(), is_chat) &&
      std::none_of(data.eval.begin(), data.eval.end(), is_chat)) {
    Fail("data.chat_template", "needs data of format chat, and there is none");
  }
}

void Parser::CheckTrain() {
  const JobSpec::Train& train = spec_.train;
  if (train.warmup_ratio > 0 && train.warmup_steps > 0) {
    Fail("train.warmup_steps",
         "cannot stand beside train.warmup_ratio: give one of them");
  }
  if (train.micro_batch_size > train.global_batch_size) {
    Fail("train.micro_batch_size",
         absl::StrCat("is ", train.micro_batch_size,
                      ", more than train.global_batch_size, ",
                      train.global_batch_size));
  }
  if (train.max_steps > 0 && train.warmup_steps > train.max_steps) {
    Fail("train.warmup_steps",
         absl::StrCat("is ", train.warmup_steps,
                      ", more than train.max_steps, ", train.max_steps));
  }
}

void Parser::CheckPaths() {
  const auto check = [&](const std::string& key, const std::string& path) {
    const bool control = std::any_of(path.begin(), path.end(), [](char c) {
      return absl::ascii_iscntrl(c);
    });
    if (control) Fail(key, "must not contain control characters");
  };
  check("model.base", spec_.model.base);
  check("lora.init_adapter", spec_.lora.init_adapter);
  for (const DataSource& source : spec_.data.train) {
    check("data.train", source.path);
  }
  for (const DataSource& source : spec_.data.eval) {
    check("data.eval", source.path);
  }
}

}  // namespace

ParsedJob ParseJobFile(std::string_view yaml,
                       const std::vector<std::string>& assignments) {
  ParsedJob job;
  Parser(job).Parse(yaml, assignments);
  return job;
}

absl::Status SpecErrorsToStatus(const std::vector<SpecError>& errors,
                                std::string_view source_name) {
  if (errors.empty()) return absl::OkStatus();
  std::string text;
  for (const SpecError& error : errors) {
    absl::StrAppend(&text, text.empty() ? "" : "\n",
                    error.flag.empty() ? std::string(source_name) : error.flag);
    if (error.line > 0) absl::StrAppend(&text, ":", error.line);
    if (error.line > 0 && error.column > 0) {
      absl::StrAppend(&text, ":", error.column);
    }
    absl::StrAppend(&text, ": ", error.path, error.path.empty() ? "" : ": ",
                    error.message);
  }
  return absl::InvalidArgumentError(text);
}

std::string_view MethodName(Method method) {
  switch (method) {
    case Method::kQlora:
      return "qlora";
    case Method::kLora:
      return "lora";
    case Method::kFull:
      return "full";
  }
  return "";
}

}  // namespace qlora
