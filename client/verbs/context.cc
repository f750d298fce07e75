#include "absl/strings/str_cat.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

absl::Status NoSuchContext(const std::string& name) {
  return WithHint(absl::NotFoundError(absl::StrCat("no context ", name)),
                  "qloractl context list");
}

}  // namespace

absl::Status ContextList(Session& session) {
  Table table({{"CURRENT"}, {"NAME"}, {"ENDPOINT"}});
  for (const auto& [name, context] : session.config.contexts) {
    table.AddRow(
        {name == session.config.current ? "*" : "", name, context.endpoint});
  }
  *session.output.out << table.Format(session.output.terminal.color);
  return absl::OkStatus();
}

absl::Status ContextUse(Session& session, const std::string& name) {
  if (!session.config.contexts.contains(name)) return NoSuchContext(name);
  session.config.current = name;
  RETURN_IF_ERROR(SaveConfig(session.config_path, session.config));
  *session.output.out << "now talking to " << name << " at "
                      << session.config.contexts[name].endpoint << "\n";
  return absl::OkStatus();
}

absl::Status ContextSet(Session& session, const std::string& name,
                        const std::string& endpoint) {
  ASSIGN_OR_RETURN(const std::string address,
                   ParseEndpoint(endpoint, "context set: address"));
  session.config.contexts[name] = {address, ""};
  if (session.config.current.empty()) session.config.current = name;
  return SaveConfig(session.config_path, session.config);
}

absl::Status ContextDelete(Session& session, const std::string& name) {
  if (session.config.contexts.erase(name) == 0) return NoSuchContext(name);
  if (session.config.current == name) session.config.current.clear();
  return SaveConfig(session.config_path, session.config);
}

}  // namespace qlora::client
