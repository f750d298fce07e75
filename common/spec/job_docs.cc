// What people and editors read about the job file, out of the key table.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/spec/job_keys.h"
#include "common/spec/job_values.h"

namespace qlora {
namespace {

using Json = nlohmann::ordered_json;

std::string DefaultOrNote(const JobKey& key) {
  if (key.required) return "none: the key is required";
  if (!key.default_note.empty()) return std::string(key.default_note);
  const std::string text = DefaultText(key);
  return text.empty() ? "none" : text;
}

std::string ExplainOne(const JobKey& key) {
  std::string text =
      absl::StrCat(std::string(key.path), "\n  ", std::string(key.help),
                   "\n  type:     ", DescribeType(key),
                   "\n  default:  ", DefaultOrNote(key), "\n");
  if (!key.unit.empty()) {
    absl::StrAppend(&text, "  unit:     ", std::string(key.unit), "\n");
  }
  if (!key.also_known_as.empty()) {
    absl::StrAppend(&text, "  known as: ", std::string(key.also_known_as),
                    "\n");
  }
  return text;
}

// Helps are written for the terminal; a table's cells may not have bars.
std::string Cell(std::string_view text) {
  return absl::StrReplaceAll(absl::string_view(text.data(), text.size()),
                             {{"|", "\\|"}, {"<", "&lt;"}});
}

// "train" of "train.epochs", "" of "name".
std::string SectionOf(const JobKey& key) {
  const size_t dot = key.path.find('.');
  return std::string(
      key.path.substr(0, dot == std::string_view::npos ? 0 : dot));
}

void AppendSection(const std::string& section, std::string& text) {
  absl::StrAppend(&text, "\n## ", section.empty() ? "Top" : section,
                  "\n\n| key | value | default | meaning | elsewhere |\n"
                  "|---|---|---|---|---|\n");
  for (const JobKey& key : JobKeys()) {
    if (SectionOf(key) != section) continue;
    const std::string unit =
        key.unit.empty() ? "" : absl::StrCat(" (", std::string(key.unit), ")");
    absl::StrAppend(&text, "| `", std::string(key.path), "` | ",
                    Cell(DescribeType(key)), unit, " | ");
    absl::StrAppend(&text, Cell(DefaultOrNote(key)), " | ", Cell(key.help),
                    " | ", Cell(key.also_known_as), " |\n");
  }
}

struct Schema {
  Json operator()(const IntegerField& f) const {
    return {
        {"type", "integer"}, {"minimum", f.minimum}, {"maximum", f.maximum}};
  }
  Json operator()(const NumberField& f) const {
    Json json = {{"type", "number"}};
    json[f.open_minimum ? "exclusiveMinimum" : "minimum"] = f.minimum;
    if (f.maximum <= 1e6) {
      json[f.open_maximum ? "exclusiveMaximum" : "maximum"] = f.maximum;
    }
    return json;
  }
  Json operator()(const BoolField&) const { return {{"type", "boolean"}}; }
  Json operator()(const StringField&) const { return {{"type", "string"}}; }
  Json operator()(const ChoiceField& f) const { return {{"enum", f.words}}; }
  Json operator()(const ListField& f) const {
    Json item = {{"type", "string"}};
    if (!f.words.empty()) item = {{"enum", f.words}};
    const Json list = {{"type", "array"}, {"items", item}};
    return {{"oneOf", Json::array({list, item})}};
  }
  Json operator()(const MapField&) const {
    return {{"type", "object"}, {"additionalProperties", {{"type", "string"}}}};
  }
  Json operator()(const PeriodField&) const {
    return {{"type", Json::array({"integer", "string"})}};
  }
  Json operator()(const DurationField&) const { return {{"type", "string"}}; }
  Json operator()(const BytesField&) const {
    return {{"type", Json::array({"integer", "string"})}};
  }
  Json operator()(const SourcesField&) const {
    Json formats = Json::array();
    for (const absl::string_view name : absl::StrSplit(FormatNames(), ", ")) {
      formats.push_back(std::string(name));
    }
    Json source = {
        {"type", "object"},
        {"properties",
         {{"path", {{"type", "string"}}}, {"format", {{"enum", formats}}}}},
        {"required", Json::array({"path"})},
        {"additionalProperties", false}};
    const Json path = {{"type", "string"}};
    const Json one = {{"oneOf", Json::array({source, path})}};
    return {{"oneOf",
             Json::array({{{"type", "array"}, {"items", one}}, source, path})}};
  }
};

Json Object() {
  return {{"type", "object"},
          {"properties", Json::object()},
          {"additionalProperties", false}};
}

Json KeySchema(const JobKey& key) {
  Json json = std::visit(Schema(), key.field);
  json["description"] = key.help;
  if (!key.required) json["x-default"] = DefaultOrNote(key);
  return json;
}

}  // namespace

absl::StatusOr<std::string> ExplainJobKey(std::string_view path) {
  if (const JobKey* key = FindJobKey(path)) return ExplainOne(*key);
  if (!IsJobSection(path)) {
    const std::string suggestion = SuggestJobKey(path);
    return absl::NotFoundError(absl::StrCat(
        "there is no key '", std::string(path.substr(0, 200)), "'",
        suggestion.empty() ? "" : "; did you mean '" + suggestion + "'?"));
  }
  const std::string prefix = path.empty() ? "" : std::string(path) + ".";
  std::string text;
  for (const JobKey& key : JobKeys()) {
    if (!key.path.starts_with(prefix)) continue;
    std::string name(key.path);
    name.resize(std::max<size_t>(name.size() + 1, 30), ' ');
    absl::StrAppend(&text, name, DescribeType(key), "; default ",
                    DefaultOrNote(key), "\n");
  }
  return text;
}

std::string JobFileMarkdown() {
  std::string text =
      "# Job file\n\n"
      "Generated from the key table in common/spec/job_keys.cc; a test fails "
      "when this page is\nold (`QLORA_UPDATE_GOLDEN=1` writes it anew). The "
      "JSON Schema for editors is\n[job-file.schema.json]"
      "(job-file.schema.json).\n\n"
      "The file is YAML and begins with `apiVersion: qlora/v1`. It is read "
      "strictly: an unknown key, a\nwrong type or two keys that contradict "
      "each other are errors with line and column. At most\n256 KiB. Numbers "
      "may be written as `2e-4`. Keys with dots are sections: `train.epochs` "
      "is\n`train: {epochs: 3}`. `qloractl explain KEY` prints the same.\n\n"
      "Paths of data files, adapters and chat templates are relative to the "
      "job file. `submit` and `plan`\nupload what they name, once for each "
      "content. An absolute path is uploaded too if the file exists\nwhere "
      "qloractl runs, unless it lies below a `--model-root` of a registered "
      "worker: that worker reads\nit there, as it reads an absolute path that "
      "exists on workers only.\n";
  std::vector<std::string> sections = {""};
  for (const JobKey& key : JobKeys()) {
    const std::string section = SectionOf(key);
    if (!section.empty() && section != sections.back()) {
      sections.push_back(section);
    }
  }
  for (const std::string& section : sections) AppendSection(section, text);
  return text;
}

std::string JobFileJsonSchema() {
  Json root = {{"$schema", "http://json-schema.org/draft-07/schema#"},
               {"title", "qlorad job file"}};
  root.update(Object());
  root["properties"]["apiVersion"] = {{"enum", {"qlora/v1"}}};
  for (const JobKey& key : JobKeys()) {
    const size_t dot = key.path.find('.');
    const std::string first(key.path.substr(0, dot));
    if (dot == std::string_view::npos) {
      root["properties"][first] = KeySchema(key);
      continue;
    }
    Json& section = root["properties"][first];
    if (section.is_null()) section = Object();
    section["properties"][std::string(key.path.substr(dot + 1))] =
        KeySchema(key);
  }
  // "model: NAME" is short for {base: NAME}.
  Json& model = root["properties"]["model"];
  model = {{"oneOf", Json::array({model, {{"type", "string"}}})}};
  root["required"] = Json::array({"apiVersion", "name", "model", "data"});
  return root.dump(2) + "\n";
}

}  // namespace qlora
