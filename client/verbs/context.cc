#include <nlohmann/json.hpp>

#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status ContextList(Session& session) {
  const Config& config = session.config;
  const OutputFormat format = session.output.format;
  const bool wide = format == OutputFormat::kWide;
  std::vector<Table::Header> headers = {{"CURRENT"}, {"NAME"}, {"ENDPOINT"}};
  if (wide) headers.push_back({"DATA DIRECTORY"});
  Table table(headers);
  nlohmann::ordered_json all = nlohmann::json::array();
  for (const auto& [name, context] : config.contexts) {
    const bool current = name == config.current;
    std::vector<std::string> row = {current ? "*" : "", name, context.endpoint};
    if (wide) row.push_back(context.data_dir.empty() ? "-" : context.data_dir);
    table.AddRow(std::move(row));
    nlohmann::ordered_json one = {
        {"name", name}, {"endpoint", context.endpoint}, {"current", current}};
    if (!context.data_dir.empty()) one["dataDir"] = context.data_dir;
    all.push_back(std::move(one));
  }
  std::ostream& out = *session.output.out;
  if (wide || format == OutputFormat::kTable) {
    out << table.Format(session.output.terminal.color);
  } else if (format == OutputFormat::kName) {
    for (const auto& [name, context] : config.contexts) out << name << "\n";
  } else if (format == OutputFormat::kJsonl) {
    for (const auto& one : all) out << one.dump() << "\n";
  } else {
    nlohmann::ordered_json document = {{"contexts", std::move(all)}};
    return PrintJson(session.output, document.dump());
  }
  return absl::OkStatus();
}

absl::Status ContextUse(Session& session, const std::string& name) {
  if (!session.config.contexts.contains(name)) return NoSuchContext(name);
  session.config.current = name;
  RETURN_IF_ERROR(SaveConfig(session.config));
  *session.output.out << "now talking to " << name << " at "
                      << session.config.contexts[name].endpoint << "\n";
  return absl::OkStatus();
}

absl::Status ContextSet(Session& session, const std::string& name,
                        const std::string& endpoint) {
  ASSIGN_OR_RETURN(const std::string address,
                   ParseEndpoint(endpoint, "context set: address"));
  session.config.contexts[name] = {address, "", ""};
  if (session.config.current.empty()) session.config.current = name;
  return SaveConfig(session.config);
}

absl::Status ContextDelete(Session& session, const std::string& name) {
  if (session.config.contexts.erase(name) == 0) return NoSuchContext(name);
  if (session.config.current == name) session.config.current.clear();
  return SaveConfig(session.config);
}

}  // namespace qlora::client
