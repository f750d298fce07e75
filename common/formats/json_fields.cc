#include "common/formats/json_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/formats/json_error.h"

namespace qlora {

using Json = nlohmann::json;

absl::StatusOr<Json> ParseJsonObject(std::string_view text,
                                     std::string_view file, size_t max_bytes) {
  const std::string name(file);
  if (text.size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(name, " has ", text.size(),
                                                   " bytes; at most ",
                                                   max_bytes, " are read"));
  }
  if (JsonDepth(text) > kMaxJsonDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is nested deeper than ", kMaxJsonDepth));
  }
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is not JSON ", JsonError(text)));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is JSON, but not an object"));
  }
  return json;
}

int JsonDepth(std::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

std::string ShownJson(const Json& value) {
  constexpr size_t kShown = 100;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return text;
}

bool JsonFields::Has(const char* name) const {
  return object_.contains(name) && !object_[name].is_null();
}

int64_t JsonFields::Integer(const char* name, int64_t minimum, int64_t maximum,
                            std::optional<int64_t> fallback) {
  if (!Has(name)) {
    if (!fallback.has_value()) Fail(name, "is missing");
    return fallback.value_or(minimum);
  }
  const Json& value = Get(name);
  const bool fits = value.is_number_unsigned()
                        ? value.get<uint64_t>() <=
                              uint64_t{std::numeric_limits<int64_t>::max()}
                        : value.is_number_integer();
  if (!fits || value.get<int64_t>() < minimum ||
      value.get<int64_t>() > maximum) {
    Fail(name, absl::StrCat("must be an integer from ", minimum, " to ",
                            maximum, ", not ", ShownJson(value)));
    return minimum;
  }
  return value.get<int64_t>();
}

double JsonFields::Positive(const char* name, std::optional<double> fallback) {
  return Number(name, std::numeric_limits<double>::min(),
                std::numeric_limits<double>::max(), fallback);
}

double JsonFields::Number(const char* name, double minimum, double maximum,
                          std::optional<double> fallback) {
  if (!Has(name)) {
    if (!fallback.has_value()) Fail(name, "is missing");
    return fallback.value_or(minimum);
  }
  const Json& value = Get(name);
  const double number = value.is_number() ? value.get<double>() : NAN;
  if (number >= minimum && number <= maximum) return number;
  const std::string range =
      minimum == std::numeric_limits<double>::min()
          ? "above 0"
          : absl::StrCat("from ", minimum, " to ", maximum);
  Fail(name,
       absl::StrCat("must be a number ", range, ", not ", ShownJson(value)));
  return minimum;
}

bool JsonFields::Bool(const char* name, std::optional<bool> fallback) {
  if (!Has(name)) {
    if (!fallback.has_value()) Fail(name, "is missing");
    return fallback.value_or(false);
  }
  if (Get(name).is_boolean()) return Get(name).get<bool>();
  Fail(name, absl::StrCat("must be true or false, not ", ShownJson(Get(name))));
  return false;
}

std::string JsonFields::String(const char* name,
                               std::optional<std::string> fallback) {
  if (!Has(name)) {
    if (!fallback.has_value()) Fail(name, "is missing");
    return fallback.value_or("");
  }
  if (Get(name).is_string()) return Get(name).get<std::string>();
  Fail(name, absl::StrCat("must be a string, not ", ShownJson(Get(name))));
  return "";
}

void JsonFields::Fail(const char* name, const std::string& what) {
  Set(absl::InvalidArgumentError(absl::StrCat(prefix_, name, " ", what)));
}

void JsonFields::Refuse(const char* name, const std::string& what) {
  Set(absl::UnimplementedError(absl::StrCat(prefix_, name, " ", what)));
}

void JsonFields::Set(absl::Status error) {
  if (status_.ok()) status_ = std::move(error);
}

}  // namespace qlora
