find_package(yaml-cpp REQUIRED)
