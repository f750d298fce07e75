// The way back: a spec as YAML, and changes to a file's YAML.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/formats/yaml_tree.h"
#include "common/spec/job_keys.h"
#include "common/spec/job_spec.h"
#include "common/spec/job_values.h"

namespace qlora {
namespace {

// A key that the parser would refuse beside this method, or beside another, or
// that the file left to the adapter.
bool IsMeaningless(const JobSpec& spec, std::string_view path) {
  if (spec.lora.from_adapter.contains(std::string(path))) return true;
  if (path.starts_with("lora.") || path == "output.formats") {
    return spec.method == Method::kFull;
  }
  if (path.starts_with("quantization.")) return spec.method != Method::kQlora;
  return false;
}

YamlNode::Entry& ChildEntry(YamlNode& map, const std::string& key) {
  map.kind = YamlNode::Kind::kMap;
  for (YamlNode::Entry& entry : map.entries) {
    if (entry.key == key) return entry;
  }
  return map.entries.emplace_back(YamlNode::Entry{key, 0, 0, {}});
}

YamlNode& Child(YamlNode& map, const std::string& key) {
  return ChildEntry(map, key).value;
}

absl::Status NoSuchPlace(std::string_view part) {
  return absl::InvalidArgumentError(
      absl::StrCat("there is no '", std::string(part),
                   "' to set; a list takes the index of an item or of the "
                   "next"));
}

// The node that a dotted path names, made where it is not there; a key at its
// end stands nowhere in the file any more.
absl::StatusOr<YamlNode*> Descend(YamlNode& root, const std::string& path) {
  YamlNode* node = &root;
  YamlNode::Entry* last = nullptr;
  const std::string dotted = absl::StrReplaceAll(path, {{"[", "."}, {"]", ""}});
  for (const std::string& part :
       std::vector<std::string>(absl::StrSplit(dotted, '.'))) {
    if (part.empty()) return NoSuchPlace(path);
    YamlNode::Entry* entry = nullptr;
    if (node->is_sequence()) {
      const std::optional<int64_t> index = ParseInteger(part);
      const auto size = static_cast<int64_t>(node->items.size());
      if (!index.has_value() || *index < 0 || *index > size) {
        return NoSuchPlace(part);
      }
      if (*index == size) node->items.emplace_back();
      node = &node->items[*index];
    } else if (node->is_scalar()) {
      // "model: NAME" is short for a map.
      if (path.rfind("model.", 0) != 0 || node != root.Find("model")) {
        return NoSuchPlace(part);
      }
      const YamlNode base = *node;
      *node = YamlNode();
      ChildEntry(*node, "base") = {"base", base.line, base.column, base};
      entry = &ChildEntry(*node, part);
    } else {
      entry = &ChildEntry(*node, part);
    }
    if (entry != nullptr) node = &entry->value;
    last = entry;
  }
  if (last != nullptr) last->line = last->column = 0;
  return node;
}

// As if it stood nowhere.
void ClearPlaces(YamlNode& node) {
  node.line = node.column = 0;
  for (YamlNode& item : node.items) ClearPlaces(item);
  for (YamlNode::Entry& entry : node.entries) {
    entry.line = entry.column = 0;
    ClearPlaces(entry.value);
  }
}

absl::Status Assign(YamlNode& root, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError("give KEY=VALUE, as train.epochs=3");
  }
  YamlDocument value = ParseYaml(assignment.substr(equals + 1));
  if (!value.errors.empty()) {
    return absl::InvalidArgumentError(value.errors[0].message);
  }
  ASSIGN_OR_RETURN(YamlNode * node,
                   Descend(root, assignment.substr(0, equals)));
  *node = std::move(value.root);
  ClearPlaces(*node);
  return absl::OkStatus();
}

}  // namespace

std::string ResolvedJobFile(const JobSpec& spec) {
  YamlNode root;
  Child(root, "apiVersion") = YamlNode::Scalar("qlora/v1");
  for (const JobKey& key : JobKeys()) {
    if (IsMeaningless(spec, key.path)) continue;
    std::optional<YamlNode> value = GetJobKey(key, spec);
    if (!value.has_value()) continue;
    YamlNode* node = &root;
    const absl::string_view path(key.path.data(), key.path.size());
    for (const absl::string_view part : absl::StrSplit(path, '.')) {
      node = &Child(*node, std::string(part));
    }
    *node = *std::move(value);
  }
  return WriteYaml(root);
}

std::string SetFlag(std::string_view assignment) {
  constexpr size_t kShown = 200;
  return absl::StrCat("--set ", std::string(assignment.substr(0, kShown)),
                      assignment.size() > kShown ? "..." : "");
}

std::optional<SpecError> AssignKeys(
    YamlNode& root, const std::vector<std::string>& assignments) {
  for (const std::string& assignment : assignments) {
    const absl::Status status = Assign(root, assignment);
    if (status.ok()) continue;
    return SpecError{"", 0, 0, std::string(status.message()),
                     SetFlag(assignment)};
  }
  return std::nullopt;
}

absl::StatusOr<std::string> ApplyOverrides(
    std::string_view yaml, const std::vector<std::string>& assignments) {
  YamlDocument document = ParseYaml(yaml);
  if (!document.errors.empty()) {
    const YamlError& error = document.errors[0];
    return absl::InvalidArgumentError(
        absl::StrCat(error.line, ":", error.column, ": ", error.message));
  }
  if (assignments.empty()) return std::string(yaml);
  if (const auto error = AssignKeys(document.root, assignments)) {
    return SpecErrorsToStatus({*error}, "job file");
  }
  return WriteYaml(document.root);
}

std::vector<std::string> NamedPaths(const JobSpec& spec) {
  std::vector<std::string> paths;
  const auto add = [&](const std::string& path) {
    if (path.empty() || absl::StartsWith(path, "dataset:") ||
        absl::StartsWith(path, "adapter:")) {
      return;
    }
    for (const std::string& other : paths) {
      if (other == path) return;
    }
    paths.push_back(path);
  };
  for (const DataSource& source : spec.data.train) add(source.path);
  for (const DataSource& source : spec.data.eval) add(source.path);
  add(spec.lora.init_adapter);
  // A template's own text has braces; a path has none.
  if (!absl::StrContains(spec.data.chat_template, "{")) {
    add(spec.data.chat_template);
  }
  return paths;
}

}  // namespace qlora
