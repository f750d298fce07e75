// One line an event: "message key=value ...", ids first. Set up once in main;
// use from any thread.
//   LogInfo("job placed", {{"job", id}, {"node", node}});
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

namespace qlora {

enum class LogFormat { kText, kJson };

// Logs go to standard error.
void InitLogging(std::string_view program, LogFormat format);

struct LogField {
  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const std::string& v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(v) {}
  LogField(std::string_view k, const absl::Status& v)
      : key(k), value(v.ToString()) {}
  template <typename T>
  requires std::is_arithmetic_v<T> LogField(std::string_view k, T v)
      : key(k), value(std::to_string(v)) {}

  std::string key;
  std::string value;
};

void LogDebug(std::string_view message,
              std::initializer_list<LogField> fields = {});
void LogInfo(std::string_view message,
             std::initializer_list<LogField> fields = {});
void LogWarning(std::string_view message,
                std::initializer_list<LogField> fields = {});
void LogError(std::string_view message,
              std::initializer_list<LogField> fields = {});

}  // namespace qlora
