// The client's configuration: named coordinators ("contexts") in
// $XDG_CONFIG_HOME/qlora/config.yaml (default ~/.config/qlora/config.yaml).
//
//   current: local
//   contexts:
//     lab: {endpoint: "10.0.0.5:7070"}
//     local: {endpoint: "127.0.0.1:7070", data_dir: /home/me/.local/state/...,
//             previous: lab}
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
  // Set for what `local start` made: where its state lies, and the context that
  // was current before (empty without one).
  std::string data_dir;
  std::string previous;
};

struct Config {
  // Name of the current context; empty without one.
  std::string current;
  std::map<std::string, Context> contexts;
};

// Used when neither a flag, nor the environment, nor the file names one.
inline constexpr char kDefaultEndpoint[] = "127.0.0.1:7070";
// The context that the first `local start` makes.
inline constexpr char kLocalContext[] = "local";

// $XDG_CONFIG_HOME/qlora/config.yaml. FailedPrecondition if neither that
// variable nor HOME is set.
absl::StatusOr<std::string> ConfigPath();

// $XDG_STATE_HOME/qlora/local (default ~/.local/state/qlora/local).
absl::StatusOr<std::string> DefaultLocalDirectory();

// What lies at ConfigPath; empty without a file, or without such a path.
// InvalidArgument names the file, the line and what is wrong there.
absl::StatusOr<Config> LoadConfig();
absl::StatusOr<Config> ParseConfig(const std::string& yaml,
                                   const std::string& source_name);

// To ConfigPath, whose errors it has.
absl::Status SaveConfig(const Config& config);
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

// NotFound: the hint lists those that there are.
absl::Status NoSuchContext(const std::string& name);

// NoSuchContext's and ParseEndpoint's errors.
absl::StatusOr<std::string> ResolveEndpoint(const EndpointChoice& choice,
                                            const Config& config);

// The context of the local instance in data_dir; empty without one.
std::string FindLocalContext(const Config& config, const std::string& data_dir);

// Makes the context of the instance in data_dir the current one and notes which
// was. A new one is called `local`, or, where that means something else,
// local-DIRECTORY (local-DIRECTORY-2 ...). Returns its name.
std::string UseLocalContext(Config& config, const std::string& endpoint,
                            const std::string& data_dir);

// Takes the context of the instance in data_dir out, as nothing listens there
// any more, and makes the one before it current again. Returns its name; empty,
// and nothing is changed, without one.
std::string DropLocalContext(Config& config, const std::string& data_dir);

}  // namespace qlora::client
