// The client's configuration: named coordinators ("contexts") in
// $XDG_CONFIG_HOME/qlora/config.yaml (default ~/.config/qlora/config.yaml).
//
//   current: local
//   previous: lab
//   contexts:
//     local: {endpoint: "127.0.0.1:7070", data_dir: /home/me/.local/state/...}
//     lab: {endpoint: "10.0.0.5:7070"}
//
// Flag over environment over file. Values only.
#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora::client {

struct Context {
  // host:port of the coordinator.
  std::string endpoint;
  // Set for what `local start` made: where its state lies.
  std::string data_dir;
};

struct Config {
  // Name of the current context; empty without one.
  std::string current;
  // Was current before `local start` made `local` so; empty without one.
  std::string previous;
  std::map<std::string, Context> contexts;
};

// Used when neither a flag, nor the environment, nor the file names one.
inline constexpr char kDefaultEndpoint[] = "127.0.0.1:7070";
// The context that `local start` makes.
inline constexpr char kLocalContext[] = "local";

// $XDG_CONFIG_HOME/qlora/config.yaml. FailedPrecondition if neither that
// variable nor HOME is set.
absl::StatusOr<std::string> ConfigPath();

// $XDG_STATE_HOME/qlora/local (default ~/.local/state/qlora/local).
absl::StatusOr<std::string> DefaultLocalDirectory();

// An absent file is an empty configuration. InvalidArgument names the file, the
// line and what is wrong there.
absl::StatusOr<Config> LoadConfig(const std::string& path);
absl::StatusOr<Config> ParseConfig(const std::string& yaml,
                                   const std::string& source_name);

absl::Status SaveConfig(const std::string& path, const Config& config);
std::string FormatConfig(const Config& config);

struct EndpointChoice {
  // --endpoint and --context; empty when not given.
  std::string endpoint_flag;
  std::string context_flag;
  // QLORA_ENDPOINT; empty when not set.
  std::string environment;
};

// host:port as gRPC takes it; "http://" before and a slash behind are taken
// off. A usage error that begins with `where` for anything else.
absl::StatusOr<std::string> ParseEndpoint(const std::string& text,
                                          const std::string& where);

// NotFound if a named context does not exist; ParseEndpoint's errors.
absl::StatusOr<std::string> ResolveEndpoint(const EndpointChoice& choice,
                                            const Config& config);

// Makes `local` the current context and notes which one was.
void UseLocalContext(Config& config, const std::string& endpoint,
                     const std::string& data_dir);

// Takes `local` out, as nothing listens there any more, and makes the one
// before it current again. False, and nothing is changed, unless `local` means
// the instance in data_dir.
bool DropLocalContext(Config& config, const std::string& data_dir);

}  // namespace qlora::client
