# Debian's gRPC 1.51 (C++), with its code generator and the server reflection.
find_package(gRPC CONFIG REQUIRED)
find_program(QLORA_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
