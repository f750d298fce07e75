// ListFlags and Completion: the command line told to people and shells.
#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
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

// "-f,--file" as words.
std::vector<std::string> Words(const std::string& flag) {
  return absl::StrSplit(flag, ',');
}

// Branches of a case in bash and zsh: the first walks from a command to the one
// below it, the second says what may follow.
std::string Walk(const std::vector<Command>& commands) {
  std::vector<std::string> paths;
  for (const Command& command : commands) {
    paths.push_back(absl::StrCat("\"", command.path, "\""));
  }
  return absl::StrJoin(paths, "|");
}

std::string Offers(const std::vector<Command>& commands) {
  std::string cases;
  for (const Command& command : commands) {
    std::vector<std::string> words = command.verbs;
    for (const std::string& flag : command.flags) {
      for (std::string& word : Words(flag)) words.push_back(std::move(word));
    }
    absl::StrAppend(&cases, "    \"", command.path, "\") offers=\"",
                    absl::StrJoin(words, " "), "\" ;;\n");
  }
  return cases;
}

// Flags come last among the offers; they are in the way of file names until
// asked for.
constexpr char kVerbsOnly[] =
    "  case $word in -*) ;; *) offers=${offers%%-*} ;; esac\n";

// The body of the function in bash and zsh: `words` are those before the one
// that is typed, `word` is that one.
std::string FindOffers(const std::vector<Command>& commands, const char* words,
                       const char* word) {
  return absl::StrCat(
      "_qloractl() {\n"
      "  local line=qloractl word offers=\n"
      "  for word in \"",
      words,
      "\"; do\n"
      "    case \"$line $word\" in\n      ",
      Walk(commands),
      ") line=\"$line $word\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case $line in\n",
      Offers(commands),
      "  esac\n"
      "  word=",
      word, "\n", kVerbsOnly);
}

std::string BashScript(const std::vector<Command>& commands) {
  return absl::StrCat(FindOffers(commands, "${COMP_WORDS[@]:1:COMP_CWORD-1}",
                                 "\"${COMP_WORDS[COMP_CWORD]}\""),
                      "  COMPREPLY=($(compgen -W \"$offers\" -- \"$word\"))\n"
                      "}\n"
                      "complete -o default -F _qloractl qloractl\n");
}

std::string ZshScript(const std::vector<Command>& commands) {
  return absl::StrCat(
      "#compdef qloractl\n",
      FindOffers(commands, "${(@)words[2,CURRENT-1]}", "${words[CURRENT]}"),
      "  compadd -- ${=offers}\n"
      "  _files\n"
      "}\n"
      "compdef _qloractl qloractl\n");
}

std::string FishScript(const std::vector<Command>& commands) {
  std::vector<std::string> paths;
  std::string lines;
  for (const Command& command : commands) {
    paths.push_back(absl::StrCat("'", command.path, "'"));
    const std::string start = absl::StrCat(
        "complete -c qloractl -n '__qloractl_at ", command.path, "'");
    if (!command.verbs.empty()) {
      absl::StrAppend(&lines, start, " -f -a '",
                      absl::StrJoin(command.verbs, " "), "'\n");
    }
    for (const std::string& flag : command.flags) {
      absl::StrAppend(&lines, start);
      for (const std::string& word : Words(flag)) {
        const bool is_long = absl::StartsWith(word, "--");
        absl::StrAppend(&lines, is_long ? " -l " : " -s ",
                        word.substr(is_long ? 2 : 1));
      }
      absl::StrAppend(&lines, "\n");
    }
  }
  return absl::StrCat(
      "function __qloractl_at\n"
      "  set -l line qloractl\n"
      "  for word in (commandline -opc)[2..]\n"
      "    switch \"$line $word\"\n"
      "      case ",
      absl::StrJoin(paths, " "),
      "\n"
      "        set line \"$line $word\"\n"
      "    end\n"
      "  end\n"
      "  test \"$line\" = \"$argv\"\n"
      "end\n",
      lines);
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

std::string Completion(const CLI::App& app, const std::string& shell) {
  std::vector<Command> commands;
  Collect(app, "", &commands);
  // What stands at the top is understood behind every verb.
  const std::vector<std::string> everywhere = commands[0].flags;
  for (Command& command : commands) {
    for (const std::string& flag : everywhere) {
      if (std::find(command.flags.begin(), command.flags.end(), flag) ==
          command.flags.end()) {
        command.flags.push_back(flag);
      }
    }
  }
  if (shell == "fish") return FishScript(commands);
  return shell == "zsh" ? ZshScript(commands) : BashScript(commands);
}

}  // namespace qlora::client
