#include "client/cli.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/errors.h"
#include "common/base/edit_distance.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

absl::StatusOr<Session> MakeSession(const GlobalFlags& flags) {
  Session session;
  session.output.out = &std::cout;
  session.output.terminal = DetectTerminal();
  ASSIGN_OR_RETURN(session.output.format, ParseOutputFormat(flags.output));
  ASSIGN_OR_RETURN(session.config, LoadConfig());
  // Who names one means no other, not even of those that `local stop` finds;
  // with an endpoint beside it, it names nothing.
  if (!flags.context.empty() && flags.endpoint.empty() &&
      !session.config.contexts.contains(flags.context)) {
    return NoSuchContext(flags.context);
  }
  session.context =
      flags.context.empty() ? session.config.current : flags.context;
  session.project = flags.project;
  return session;
}

absl::StatusOr<int> RunChosen(const Cli& cli) {
  ASSIGN_OR_RETURN(Session session, MakeSession(cli.flags()));
  ASSIGN_OR_RETURN(const int code, cli.chosen()(session));
  if (!session.output.out->flush()) {
    return absl::ResourceExhaustedError("cannot write to standard output");
  }
  return code;
}

Cli::Action WithoutCode(std::function<absl::Status(Session&)> action) {
  return [action = std::move(action)](Session& session) -> absl::StatusOr<int> {
    RETURN_IF_ERROR(action(session));
    return kExitOk;
  };
}

// What the standard library throws, for instance in a working directory that
// was deleted, is an error like any other.
absl::StatusOr<int> RunGuarded(const Cli& cli) {
  try {
    return RunChosen(cli);
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

// A number that is not within the bounds, or none at all.
CLI::Validator Bounded(double low, double high, const std::string& allowed) {
  const auto check = [=](const std::string& text) -> std::string {
    double value = 0;
    if (absl::SimpleAtod(text, &value) && value >= low && value <= high) {
      return "";
    }
    return absl::StrCat("must be ", allowed, ", not ", text);
  };
  return CLI::Validator(check, allowed);
}

// The verb that was meant, for the hint: the deepest one that was parsed.
std::string CommandName(const CLI::App& app) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  return chosen.empty()
             ? app.get_name()
             : absl::StrCat(app.get_name(), " ", CommandName(*chosen.front()));
}

absl::Status WithHelp(absl::Status status, const CLI::App& app) {
  return WithHint(std::move(status), absl::StrCat(CommandName(app), " --help"));
}

// The deepest command that was understood.
const CLI::App& Deepest(const CLI::App& app) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  return chosen.empty() ? app : Deepest(*chosen.front());
}

// Names of the commands below `app`, or its flags and the global ones.
std::vector<std::string> Choices(const CLI::App& app, bool flags) {
  std::vector<std::string> names;
  if (!flags) {
    for (const CLI::App* verb : app.get_subcommands(nullptr)) {
      names.push_back(verb->get_name());
    }
    return names;
  }
  for (const CLI::App* at = &app; at != nullptr; at = at->get_parent()) {
    for (const CLI::Option* option : at->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        names.push_back(absl::StrCat("--", name));
      }
    }
  }
  return names;
}

// The one that was likely meant; empty if none is near.
std::string Nearest(const std::string& text,
                    const std::vector<std::string>& choices) {
  std::string nearest;
  size_t best = std::max<size_t>(1, text.size() / 3) + 1;
  for (const std::string& choice : choices) {
    const size_t distance = EditDistance(text, choice);
    if (distance >= best) continue;
    best = distance;
    nearest = choice;
  }
  return nearest;
}

// CLI11 speaks of a missing verb where there is a misspelled one.
absl::Status WrongLine(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  const CLI::App& at = Deepest(app);
  const std::vector<std::string> verbs = Choices(at, /*flags=*/false);
  if (unknown.empty()) {
    const bool no_verb = !verbs.empty() && error.get_name() == "RequiredError";
    return WithHelp(
        UsageError(no_verb ? absl::StrCat("give a command: ",
                                          absl::StrJoin(verbs, ", "))
                           : std::string(error.what())),
        app);
  }
  const std::string& word = unknown[0];
  const bool flag = absl::StartsWith(word, "-");
  if (!flag && verbs.empty()) {
    return WithHelp(UsageError(absl::StrCat("unexpected argument ", word)),
                    app);
  }
  const std::string nearest =
      Nearest(word.substr(0, flag ? word.find('=') : word.npos),
              flag ? Choices(at, /*flags=*/true) : verbs);
  return WithHelp(
      UsageError(absl::StrCat(
          "unknown ", flag ? "flag " : "command ", word,
          nearest.empty() ? ""
                          : absl::StrCat("; did you mean ", nearest, "?"))),
      app);
}

}  // namespace

CLI::Validator AtLeast(double low) {
  return Bounded(low, std::numeric_limits<double>::max(),
                 absl::StrFormat("%.15g or more", low));
}

CLI::Validator Between(double low, double high) {
  return Bounded(low, high, absl::StrFormat("%.15g to %.15g", low, high));
}

CLI::Option* AddTimeout(CLI::App* verb, absl::Duration* timeout,
                        const std::string& help) {
  const auto parse = [timeout](const std::string& text) {
    double seconds = 0;
    const bool plain = absl::SimpleAtod(text, &seconds) && seconds >= 0;
    if (plain) *timeout = absl::Seconds(seconds);
    if (!plain && (!absl::ParseDuration(text, timeout) ||
                   *timeout < absl::ZeroDuration())) {
      throw CLI::ValidationError(
          "--timeout",
          absl::StrCat("must be a time such as 90s, 5m or 1h30m, not ", text));
    }
  };
  return verb->add_option_function<std::string>("--timeout", parse, help)
      ->type_name("DURATION");
}

Cli::Cli() : app_("Fine-tunes models on your own machines.", "qloractl") {
  app_.require_subcommand(1);
  app_.fallthrough();
  app_.set_version_flag("--version", "qloractl " QLORA_VERSION);
  app_.footer("-o, --endpoint, --context and --project go with every verb.");
  app_.option_defaults()->always_capture_default(false);
  app_.add_option("--endpoint", flags_.endpoint,
                  "Coordinator, host:port (over QLORA_ENDPOINT and the current "
                  "context)");
  app_.add_option("--context", flags_.context,
                  "Coordinator by its name in the configuration");
  app_.add_option("--project", flags_.project, "Project whose jobs are meant");
  app_.add_option("-o,--output", flags_.output,
                  "table, wide, json, yaml, name or jsonl");
  AddJobVerbs(*this);
  AddResultVerbs(*this);
  AddRegistryVerbs(*this);
  AddSetupVerbs(*this);
}

void Cli::Do(CLI::App* verb, Action action) {
  const auto online = [this, action = std::move(action)](
                          Session& session) -> absl::StatusOr<int> {
    const char* environment = std::getenv("QLORA_ENDPOINT");
    ASSIGN_OR_RETURN(
        session.endpoint,
        ResolveEndpoint({flags_.endpoint, flags_.context,
                         environment == nullptr ? "" : environment},
                        session.config));
    return action(session);
  };
  verb->final_callback([this, online] { chosen_ = online; });
}

void Cli::DoSimple(CLI::App* verb,
                   std::function<absl::Status(Session&)> action) {
  Do(verb, WithoutCode(std::move(action)));
}

void Cli::DoOffline(CLI::App* verb,
                    std::function<absl::Status(Session&)> action) {
  verb->final_callback(
      [this, simple = WithoutCode(std::move(action))] { chosen_ = simple; });
}

int RunCli(int argc, char** argv) {
  Cli cli;
  try {
    cli.app().parse(argc, argv);
  } catch (const CLI::Success& e) {
    return cli.app().exit(e);
  } catch (const CLI::ParseError& e) {
    std::cerr << FormatError(WrongLine(cli.app(), e));
    return kExitUsage;
  }
  const absl::StatusOr<int> code = RunGuarded(cli);
  if (code.ok()) return *code;
  absl::Status status = code.status();
  const int exit_code = ExitCodeFor(status);
  if (exit_code == kExitUsage) status = WithHelp(std::move(status), cli.app());
  std::cerr << FormatError(status);
  return exit_code;
}

}  // namespace qlora::client
