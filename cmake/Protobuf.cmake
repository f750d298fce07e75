# Debian's protobuf 3.21.
find_package(Protobuf REQUIRED)
