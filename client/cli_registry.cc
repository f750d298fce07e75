// Flags of the verbs for registered models, datasets and nodes.
#include "client/cli.h"
#include "client/verbs.h"

namespace qlora::client {
namespace {

// list, inspect NAME and delete NAME.
void AddRegistry(Cli& cli, CLI::App& parent, const std::string& what,
                 absl::Status (*list)(Session&),
                 absl::Status (*inspect)(Session&, const std::string&),
                 absl::Status (*remove)(Session&, const std::string&)) {
  cli.DoSimple(parent.add_subcommand("list", "All " + what + "s by name"),
               [list](Session& s) { return list(s); });
  auto name = std::make_shared<std::string>();
  CLI::App* one = parent.add_subcommand("inspect", "One " + what);
  one->add_option("NAME", *name, "Registered name")->required();
  cli.DoSimple(one, [name, inspect](Session& s) { return inspect(s, *name); });
  CLI::App* gone = parent.add_subcommand("delete", "Forget a " + what);
  gone->add_option("NAME", *name, "Registered name")->required();
  cli.DoSimple(gone, [name, remove](Session& s) { return remove(s, *name); });
}

void AddDataset(Cli& cli) {
  CLI::App* dataset =
      cli.app().add_subcommand("dataset", "Uploaded data, by name");
  dataset->require_subcommand(1);
  auto options = std::make_shared<DatasetPushOptions>();
  CLI::App* push = dataset->add_subcommand(
      "push", "Upload a file; a job file says dataset:NAME for it");
  push->add_option("FILE", options->file, "Data file")->required();
  push->add_option("--name", options->name,
                   "Name to register; default: the file's without its end");
  push->add_flag("--replace", options->replace,
                 "Let a name that means other content mean this from now on");
  push->add_flag("--allow-bad", options->allow_bad,
                 "Push records too that no format of data.train has");
  cli.DoSimple(push,
               [options](Session& s) { return DatasetPush(s, *options); });
  AddRegistry(cli, *dataset, "dataset", DatasetList, DatasetInspect,
              DatasetDelete);
}

}  // namespace

void AddRegistryVerbs(Cli& cli) {
  AddRegistry(cli, *cli.app().get_subcommand("model"), "model", ModelList,
              ModelInspect, ModelDelete);
  AddDataset(cli);
  CLI::App* node = cli.app().add_subcommand("node", "Machines that train");
  node->require_subcommand(1);
  cli.DoSimple(node->add_subcommand("list", "All nodes by name"),
               [](Session& s) { return NodeList(s); });
  auto name = std::make_shared<std::string>();
  CLI::App* remove = node->add_subcommand(
      "remove", "Forget a node that is gone and holds no ranks");
  remove->add_option("NAME", *name, "Name of the node")->required();
  cli.DoSimple(remove, [name](Session& s) { return NodeRemove(s, *name); });
}

}  // namespace qlora::client
