// Typed, checked access to JSON that others wrote (config.json,
// adapter_config.json, manifests). Not for hot paths; one thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora {

// Copying, comparing and printing a value recurse as deep as it is nested.
inline constexpr int kMaxJsonDepth = 100;
// Far above any config.json.
inline constexpr size_t kMaxJsonBytes = 4 << 20;

// Depth of the brackets outside strings, whether or not the text is JSON.
int JsonDepth(std::string_view text);

// Parses a text of at most max_bytes and kMaxJsonDepth whose top is an object.
// InvalidArgument naming `file`.
absl::StatusOr<nlohmann::json> ParseJsonObject(
    std::string_view text, std::string_view file,
    size_t max_bytes = kMaxJsonBytes);

// The fields of one object. A field that is null counts as absent. The first
// error is kept in the given status, which the caller reads once at the end:
// InvalidArgument or Unimplemented, "<prefix><field> must be ...".
class JsonFields {
 public:
  // Both must outlive this.
  JsonFields(const nlohmann::json& object, std::string prefix,
             absl::Status& status)
      : object_(object), prefix_(std::move(prefix)), status_(status) {}

  bool Has(const char* name) const;
  // Must be there.
  const nlohmann::json& Get(const char* name) const { return object_[name]; }

  // Without a fallback an absent field is an error. On an error they give some
  // value of the right type.
  int64_t Integer(const char* name, int64_t minimum, int64_t maximum,
                  std::optional<int64_t> fallback = std::nullopt);
  // Finite and above zero.
  double Positive(const char* name,
                  std::optional<double> fallback = std::nullopt);
  // Finite, within [minimum, maximum].
  double Number(const char* name, double minimum, double maximum,
                std::optional<double> fallback = std::nullopt);
  bool Bool(const char* name, std::optional<bool> fallback = std::nullopt);
  std::string String(const char* name,
                     std::optional<std::string> fallback = std::nullopt);

  // The value is wrong.
  void Fail(const char* name, const std::string& what);
  // The value is right but not supported.
  void Refuse(const char* name, const std::string& what);

 private:
  void Set(absl::Status error);

  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status& status_;
};

// A value for a message: one line of ASCII, cut short.
std::string ShownJson(const nlohmann::json& value);

}  // namespace qlora
