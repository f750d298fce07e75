# prometheus-cpp, and the CivetWeb server it brings along (prometheus-cpp's own
# Exposer cannot answer 503).
find_package(prometheus-cpp CONFIG REQUIRED)
find_library(QLORA_CIVETWEB_CPP civetweb-cpp REQUIRED)
find_library(QLORA_CIVETWEB civetweb REQUIRED)
add_library(qlora_civetweb INTERFACE)
target_link_libraries(qlora_civetweb INTERFACE "${QLORA_CIVETWEB_CPP}" "${QLORA_CIVETWEB}")
