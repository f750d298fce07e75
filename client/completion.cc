// ListFlags and BashCompletion: the command line told to people and shells.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/cli.h"

namespace qlora::client {
namespace {

struct Command {
  // "qloractl local start".
  std::string path;
  std::vector<std::string> verbs;
  std::vector<std::string> flags;
  std::vector<std::string> arguments;
};

void Collect(const CLI::App& app, const std::string& parent,
             std::vector<Command>* commands) {
  Command command;
  command.path = parent.empty() ? app.get_name()
                                : absl::StrCat(parent, " ", app.get_name());
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name(/*positional=*/false,
                                              /*all_options=*/true);
    auto& names = option->get_positional() ? command.arguments : command.flags;
    names.push_back(name);
  }
  const std::vector<const CLI::App*> verbs =
      app.get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* verb : verbs) command.verbs.push_back(verb->get_name());
  const std::string path = command.path;
  commands->push_back(std::move(command));
  for (const CLI::App* verb : verbs) Collect(*verb, path, commands);
}

}  // namespace

std::string ListFlags(const CLI::App& app) {
  std::vector<Command> commands;
  Collect(app, "", &commands);
  std::vector<std::string> lines;
  for (const Command& command : commands) {
    lines.push_back(command.path);
    for (const auto* names : {&command.flags, &command.arguments}) {
      for (const std::string& name : *names) {
        lines.push_back(absl::StrCat(command.path, " ", name));
      }
    }
  }
  std::sort(lines.begin(), lines.end());
  return absl::StrCat(absl::StrJoin(lines, "\n"), "\n");
}

std::string BashCompletion(const CLI::App& app) {
  std::vector<Command> commands;
  Collect(app, "", &commands);
  std::string cases;
  for (const Command& command : commands) {
    absl::StrAppend(
        &cases, "    \"", command.path, "\") words=\"",
        absl::StrJoin(command.verbs, " "), " ",
        absl::StrReplaceAll(absl::StrJoin(command.flags, " "), {{",", " "}}),
        "\" ;;\n");
  }
  return absl::StrCat(
      "_qloractl() {\n"
      "  local path=qloractl word words=\n"
      "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
      "    case $word in -*) ;; *) path=\"$path $word\" ;; esac\n"
      "  done\n"
      "  case $path in\n",
      cases,
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -f -- "
      "\"${COMP_WORDS[COMP_CWORD]}\"))\n"
      "}\n"
      "complete -F _qloractl qloractl\n");
}

}  // namespace qlora::client
