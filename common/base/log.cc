#include "common/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

namespace qlora {
namespace {

LogFormat g_format = LogFormat::kText;

// Control characters too: values that others chose must not move the cursor.
bool NeedsQuotes(std::string_view value) {
  return value.empty() || std::any_of(value.begin(), value.end(), [](char c) {
           return static_cast<uint8_t>(c) <= ' ' || c == '"' || c == '=' ||
                  c == '\x7f';
         });
}

std::string TextLine(std::string_view message,
                     std::initializer_list<LogField> fields) {
  std::string line(message);
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    if (NeedsQuotes(field.value)) {
      line +=
          nlohmann::json(field.value)
              .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    } else {
      line += field.value;
    }
  }
  return line;
}

// The inner part of a JSON object; the sink's pattern adds time and level.
std::string JsonLine(std::string_view message,
                     std::initializer_list<LogField> fields) {
  nlohmann::ordered_json object;
  object["message"] = message;
  for (const LogField& field : fields) object[field.key] = field.value;
  const std::string text =
      object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.substr(1, text.size() - 2);
}

void Log(spdlog::level::level_enum level, std::string_view message,
         std::initializer_list<LogField> fields) {
  spdlog::default_logger_raw()->log(level, g_format == LogFormat::kJson
                                               ? JsonLine(message, fields)
                                               : TextLine(message, fields));
}

}  // namespace

void InitLogging(std::string_view program, LogFormat format) {
  g_format = format;
  auto logger = spdlog::stderr_color_mt(std::string(program));
  if (format == LogFormat::kJson) {
    logger->set_pattern(
        R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","program":"%n",%v})",
        spdlog::pattern_time_type::utc);
  } else {
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %L %n: %v",
                        spdlog::pattern_time_type::utc);
  }
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

void LogDebug(std::string_view message,
              std::initializer_list<LogField> fields) {
  Log(spdlog::level::debug, message, fields);
}
void LogInfo(std::string_view message, std::initializer_list<LogField> fields) {
  Log(spdlog::level::info, message, fields);
}
void LogWarning(std::string_view message,
                std::initializer_list<LogField> fields) {
  Log(spdlog::level::warn, message, fields);
}
void LogError(std::string_view message,
              std::initializer_list<LogField> fields) {
  Log(spdlog::level::err, message, fields);
}

}  // namespace qlora
