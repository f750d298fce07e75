// Flags of the verbs that need no job: job files, contexts, the local instance.
#include "absl/strings/str_cat.h"
#include "client/cli.h"
#include "client/errors.h"
#include "client/verbs.h"

namespace qlora::client {
namespace {

constexpr char kDataDirHelp[] =
    "Where state and logs lie; default: $XDG_STATE_HOME/qlora/local";

void AddExplain(Cli& cli) {
  auto key = std::make_shared<std::string>();
  CLI::App* verb = cli.app().add_subcommand(
      "explain", "What a key of the job file means; without one, all keys");
  verb->add_option("KEY", *key, "For instance train.learning_rate");
  cli.DoOffline(verb, [key](Session& s) { return Explain(s, *key); });
}

void AddInit(Cli& cli) {
  auto options = std::make_shared<InitOptions>();
  CLI::App* verb =
      cli.app().add_subcommand("init", "Write a job file to begin with");
  verb->add_option("FILE", options->file, "Default: job.yaml");
  verb->add_option("--name", options->name, "Name of the job");
  verb->add_option("--model", options->model,
                   "Directory of the base model, or its registered name");
  verb->add_option("--data", options->data,
                   "File to train on (a .txt is text, others are chats), or "
                   "dataset:NAME");
  verb->add_flag("--force", options->force, "Overwrite the file");
  cli.DoOffline(verb, [options](Session& s) { return Init(s, *options); });
}

void AddContext(Cli& cli) {
  CLI::App* context =
      cli.app().add_subcommand("context", "Coordinators by name");
  context->require_subcommand(1);
  cli.DoOffline(context->add_subcommand("list", "All contexts"),
                [](Session& s) { return ContextList(s); });
  auto name = std::make_shared<std::string>();
  CLI::App* use = context->add_subcommand("use", "Make one the current one");
  use->add_option("NAME", *name, "Context")->required();
  cli.DoOffline(use, [name](Session& s) { return ContextUse(s, *name); });
  auto endpoint = std::make_shared<std::string>();
  CLI::App* set = context->add_subcommand("set", "Name a coordinator");
  set->add_option("NAME", *name, "Context")->required();
  set->add_option("ADDRESS", *endpoint, "host:port")->required();
  cli.DoOffline(set, [name, endpoint](Session& s) {
    return ContextSet(s, *name, *endpoint);
  });
  CLI::App* remove = context->add_subcommand("delete", "Forget a context");
  remove->add_option("NAME", *name, "Context")->required();
  cli.DoOffline(remove, [name](Session& s) { return ContextDelete(s, *name); });
}

void AddLocalStart(Cli& cli, CLI::App& local) {
  auto options = std::make_shared<LocalStartOptions>();
  CLI::App* verb = local.add_subcommand(
      "start",
      "Start a coordinator and a worker and make them the current "
      "context");
  verb->add_option("--cpu-ranks", options->cpu_ranks,
                   "Devices that the processor offers; default: the worker "
                   "decides")
      ->check(Between(1, 256));
  verb->add_option("--data-dir", options->data_dir, kDataDirHelp);
  verb->add_option("--model-root", options->model_roots,
                   "Directory with models that jobs may name; repeatable; "
                   "default: the current directory")
      ->allow_extra_args(false);
  verb->add_flag("--foreground", options->foreground,
                 "Stay, log to standard error, end both on Ctrl-C, "
                 "SIGTERM or SIGHUP");
  cli.DoOffline(verb,
                [options](Session& s) { return LocalStart(s, *options); });
}

void AddLocal(Cli& cli) {
  CLI::App* local = cli.app().add_subcommand(
      "local", "A coordinator and a worker on this machine");
  local->require_subcommand(1);
  AddLocalStart(cli, *local);
  struct Options {
    std::string data_dir;
    absl::Duration timeout = absl::Seconds(30);
    bool follow = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* status = local->add_subcommand("status", "What runs");
  status->add_option("--data-dir", options->data_dir, kDataDirHelp);
  cli.DoOffline(status, [options](Session& s) {
    return LocalStatus(s, options->data_dir);
  });
  CLI::App* stop = local->add_subcommand(
      "stop",
      "End what start started; a running job saves and goes on at the "
      "next start");
  stop->add_option("--data-dir", options->data_dir, kDataDirHelp);
  AddTimeout(stop, &options->timeout, "Until a daemon is killed; default: 30s");
  cli.DoOffline(stop, [options](Session& s) {
    return LocalStop(s, options->data_dir, options->timeout);
  });
  CLI::App* logs = local->add_subcommand("logs", "What the daemons logged");
  logs->add_option("--data-dir", options->data_dir, kDataDirHelp);
  logs->add_flag("-f,--follow", options->follow, "Stay until Ctrl-C");
  cli.DoOffline(logs, [options](Session& s) {
    return LocalLogs(s, options->data_dir, options->follow);
  });
}

void AddCompletion(Cli& cli) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = cli.app().add_subcommand(
      "completion",
      "A completion script: source <(qloractl completion bash), or zsh; for "
      "fish: qloractl completion fish | source");
  verb->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  // The option writes into shell, so the action keeps it alive.
  cli.DoOffline(verb, [&cli, shell](Session& s) {
    *s.output.out << Completion(cli.app(), *shell);
    return absl::OkStatus();
  });
}

}  // namespace

void AddSetupVerbs(Cli& cli) {
  AddExplain(cli);
  AddInit(cli);
  AddContext(cli);
  AddLocal(cli);
  cli.DoSimple(cli.app().add_subcommand(
                   "version", "Versions of this program and the coordinator"),
               [](Session& s) { return Version(s); });
  AddCompletion(cli);
}

}  // namespace qlora::client
