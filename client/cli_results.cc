// Flags of the verbs for what jobs leave behind: adapters and text.
#include "absl/strings/str_cat.h"
#include "client/cli.h"
#include "client/verbs.h"

namespace qlora::client {
namespace {

constexpr char kJobHelp[] = "Id, unique prefix of it, name or @last";

void AddPull(Cli& cli, CLI::App& parent, const std::string& help,
             const std::string& what,
             absl::Status (*verb_function)(Session&, const PullOptions&)) {
  auto options = std::make_shared<PullOptions>();
  CLI::App* verb = parent.add_subcommand("pull", help);
  verb->add_option("JOB", options->job, what)->required();
  verb->add_option("--to", options->to, "New directory for the files")
      ->required();
  verb->add_flag("--force", options->force, "Replace the directory");
  cli.DoSimple(verb, [options, verb_function](Session& s) {
    return verb_function(s, *options);
  });
}

void AddAdapter(Cli& cli) {
  CLI::App* adapter = cli.app().add_subcommand("adapter", "Trained adapters");
  adapter->require_subcommand(1);
  cli.DoSimple(adapter->add_subcommand("list", "Adapters of finished jobs"),
               [](Session& s) { return AdapterList(s); });
  AddPull(cli, *adapter, "Download a job's adapter and check its digests",
          kJobHelp, AdapterPull);
  auto job = std::make_shared<std::string>();
  CLI::App* verify = adapter->add_subcommand(
      "verify", "Load the adapter again, repeat its evaluation and compare");
  verify->add_option("JOB", *job, kJobHelp)->required();
  cli.DoSimple(verify, [job](Session& s) { return AdapterVerify(s, *job); });
}

void AddGenerate(Cli& cli) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* verb = cli.app().add_subcommand(
      "generate", "Let a model or a job's adapter write text");
  CLI::Option* job =
      verb->add_option("--job", options->job, "The adapter of this job");
  verb->add_option("--model", options->model,
                   "A registered model or a directory on the server")
      ->excludes(job);
  verb->add_option("PROMPT", options->prompts,
                   "Each is answered; without one the lines of standard input");
  CLI::Option* base = verb->add_flag("--no-adapter", options->no_adapter,
                                     "With --job: its base alone");
  verb->add_flag("--compare", options->compare,
                 "With --job: base and adapter, one below the other")
      ->excludes(base);
  verb->add_flag("--chat", options->chat,
                 "A prompt is what a user says in a chat");
  verb->add_option("--max-new-tokens", options->max_new_tokens,
                   "Longest answer")
      ->check(Between(1, 1 << 20));
  verb->add_option("--temperature", options->temperature, "0 is greedy")
      ->check(Between(0, 100));
  verb->add_option("--top-p", options->top_p,
                   "Choose among the likeliest of this share; 1 is all")
      ->check(Between(0, 1));
  verb->add_option("--seed", options->seed, "Of the random choice");
  cli.DoSimple(verb, [options](Session& s) { return Generate(s, *options); });
}

void AddModel(Cli& cli) {
  CLI::App* model = cli.app().add_subcommand("model", "Registered models");
  model->require_subcommand(1);
  auto import_options = std::make_shared<ModelImportOptions>();
  CLI::App* import = model->add_subcommand(
      "import", "Register a directory, or upload it to a server elsewhere");
  import->add_option("DIR", import_options->directory, "In Hugging Face form")
      ->required();
  import->add_option("--name", import_options->name,
                     "Name to register; default: the directory's");
  import->add_flag("--upload", import_options->upload,
                   "Upload even to a server on this machine");
  cli.DoSimple(import, [import_options](Session& s) {
    return ModelImport(s, *import_options);
  });
  AddPull(cli, *model,
          "Download what a job of method full made, or an uploaded model",
          absl::StrCat(kJobHelp, ", or an uploaded model's name"), ModelPull);
}

}  // namespace

void AddResultVerbs(Cli& cli) {
  AddAdapter(cli);
  AddGenerate(cli);
  AddModel(cli);
}

}  // namespace qlora::client
