// The command line: flags and verbs, and what main runs.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session.h"

namespace qlora::client {

// Flags that every verb has.
struct GlobalFlags {
  std::string endpoint;
  std::string context;
  std::string project;
  std::string output = "table";
};

// A command line that was parsed: what to do. For one thread.
class Cli {
 public:
  Cli();

  CLI::App& app() { return app_; }
  const GlobalFlags& flags() const { return flags_; }

  using Action = std::function<absl::StatusOr<int>(Session&)>;

  // Makes `verb` do `action` when it is chosen, with the coordinator that
  // flags, environment and file say; an error if they name none.
  void Do(CLI::App* verb, Action action);
  // The same for a verb whose success is exit code 0.
  void DoSimple(CLI::App* verb, std::function<absl::Status(Session&)> action);
  // DoSimple for a verb that works whatever coordinator is named.
  void DoOffline(CLI::App* verb, std::function<absl::Status(Session&)> action);

  // What the chosen verb does; null before a successful parse.
  const Action& chosen() const { return chosen_; }

 private:
  CLI::App app_;
  GlobalFlags flags_;
  Action chosen_;
};

// Checks of a number, whose errors say what is allowed.
CLI::Validator AtLeast(double low);
CLI::Validator Between(double low, double high);

// Adds --timeout: "90s", "1h30m" or plain seconds.
CLI::Option* AddTimeout(CLI::App* verb, absl::Duration* timeout,
                        const std::string& help);

// Each adds some verbs; called by Cli's constructor.
void AddJobVerbs(Cli& cli);
void AddResultVerbs(Cli& cli);
void AddRegistryVerbs(Cli& cli);
void AddSetupVerbs(Cli& cli);

// Every command with its flags, one a line, sorted: what scripts may rely on.
std::string ListFlags(const CLI::App& app);

// A script that teaches a shell ("bash", "zsh" or "fish") the app's verbs and
// flags.
std::string Completion(const CLI::App& app, const std::string& shell);

// Parses and runs; prints errors. Returns the exit code.
int RunCli(int argc, char** argv);

}  // namespace qlora::client
