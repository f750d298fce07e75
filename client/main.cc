#include "client/cli.h"

int main(int argc, char** argv) { return qlora::client::RunCli(argc, argv); }
