// What the daemons say about flags, variables and configuration files that are
// wrong.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace qlora {

// Prints the help or version that was asked for, or the error and where to look
// for more. Returns the exit code, 0 or 2.
int EndParsing(const CLI::App& app, const CLI::ParseError& error);

// The message, behind the name of app's configuration file if a flag that the
// message names has its value from there.
std::string WithConfigFile(const CLI::App& app, const std::string& message);

}  // namespace qlora
