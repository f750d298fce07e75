#include "client/output.h"

#include <google/protobuf/util/json_util.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "client/errors.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

using Json = nlohmann::ordered_json;

void EmitString(const std::string& text, YAML::Emitter& out) {
  if (text.find('\n') != std::string::npos) {
    out << YAML::Literal << text;
    return;
  }
  // Quoted unless a reader gets a string back, not a number, a boolean or null.
  const bool word = std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalpha(c) || c == '_' || c == '/';
  });
  static const char* const kReserved[] = {"true", "false", "null", "yes", "no",
                                          "on",   "off",   "y",    "n"};
  const std::string lower = absl::AsciiStrToLower(text);
  const bool reserved = std::find(std::begin(kReserved), std::end(kReserved),
                                  lower) != std::end(kReserved);
  if (!text.empty() && word && !reserved) {
    out << text;
  } else {
    out << YAML::DoubleQuoted << text;
  }
}

void EmitYaml(const Json& value, YAML::Emitter& out) {
  if (value.is_object()) {
    out << YAML::BeginMap;
    for (const auto& [key, item] : value.items()) {
      out << YAML::Key << key << YAML::Value;
      EmitYaml(item, out);
    }
    out << YAML::EndMap;
  } else if (value.is_array()) {
    out << YAML::BeginSeq;
    for (const Json& item : value) EmitYaml(item, out);
    out << YAML::EndSeq;
  } else if (value.is_string()) {
    EmitString(value.get<std::string>(), out);
  } else {
    out << value.dump();
  }
}

std::string YamlText(const Json& value) {
  YAML::Emitter out;
  EmitYaml(value, out);
  return absl::StrCat(out.c_str(), "\n");
}

absl::StatusOr<Json> JsonTree(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  // Who asks for an empty list is to find a list.
  options.always_print_primitive_fields = true;
  std::string text;
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) {
    return absl::InternalError(
        absl::StrCat("cannot write JSON: ", status.ToString()));
  }
  // Where a stream or a list goes on: all of it has been read.
  return Json::parse(
      text, [](int, Json::parse_event_t event, const Json& value) {
        return event != Json::parse_event_t::key ||
               (value != "nextOffset" && value != "nextPageToken");
      });
}

absl::Status NoNameError() {
  return UsageError("-o name: nothing here has a name");
}

}  // namespace

absl::StatusOr<OutputFormat> ParseOutputFormat(const std::string& text) {
  if (text == "table") return OutputFormat::kTable;
  if (text == "wide") return OutputFormat::kWide;
  if (text == "json") return OutputFormat::kJson;
  if (text == "yaml") return OutputFormat::kYaml;
  if (text == "name") return OutputFormat::kName;
  if (text == "jsonl") return OutputFormat::kJsonl;
  return UsageError(absl::StrCat("-o ", text,
                                 ": no such format; one of table, wide, json, "
                                 "yaml, name, jsonl"));
}

absl::StatusOr<std::string> ToJson(const google::protobuf::Message& message,
                                   bool one_line) {
  ASSIGN_OR_RETURN(const Json tree, JsonTree(message));
  return absl::StrCat(one_line ? tree.dump() : tree.dump(2), "\n");
}

absl::StatusOr<std::string> ToYaml(const google::protobuf::Message& message) {
  ASSIGN_OR_RETURN(const Json tree, JsonTree(message));
  return YamlText(tree);
}

absl::Status PrintRecord(const Output& output,
                         const google::protobuf::Message& record) {
  if (output.format == OutputFormat::kName) return NoNameError();
  const bool yaml = output.format == OutputFormat::kYaml;
  ASSIGN_OR_RETURN(const std::string text,
                   yaml ? ToYaml(record) : ToJson(record, /*one_line=*/true));
  *output.out << (yaml ? "---\n" : "") << text << std::flush;
  return absl::OkStatus();
}

absl::Status PrintJson(const Output& output, const std::string& json) {
  const Json value = Json::parse(json);
  switch (output.format) {
    case OutputFormat::kYaml:
      *output.out << YamlText(value);
      return absl::OkStatus();
    case OutputFormat::kJsonl:
      *output.out << value.dump() << "\n";
      return absl::OkStatus();
    case OutputFormat::kName:
      return NoNameError();
    default:
      *output.out << value.dump(2) << "\n";
      return absl::OkStatus();
  }
}

std::string Table::Format(bool color) const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < headers_.size(); ++c) {
    int width = DisplayWidth(headers_[c].title);
    for (const auto& row : rows_) width = std::max(width, DisplayWidth(row[c]));
    widths.push_back(width);
  }
  const auto line = [&](const std::function<std::string(size_t)>& cell) {
    std::string text;
    for (size_t c = 0; c < headers_.size(); ++c) {
      const std::string content = cell(c);
      const std::string blanks(widths[c] - DisplayWidth(content), ' ');
      if (c > 0) text += "  ";
      text += headers_[c].right ? blanks + content : content + blanks;
    }
    absl::StripTrailingAsciiWhitespace(&text);
    return text;
  };
  const std::string header = line([&](size_t c) { return headers_[c].title; });
  std::string text = color ? absl::StrCat("\x1b[1m", header, "\x1b[0m\n")
                           : absl::StrCat(header, "\n");
  for (const auto& row : rows_) {
    absl::StrAppend(&text, line([&](size_t c) { return row[c]; }), "\n");
  }
  return text;
}

}  // namespace qlora::client
