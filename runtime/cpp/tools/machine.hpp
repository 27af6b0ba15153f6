#pragma once

#include <nlohmann/json.hpp>

namespace cmt::tools {

/// The report's `environment` of this machine; what is Python's alone is null.
nlohmann::ordered_json describe_machine();
std::string host_name();

/// Now, ISO 8601 in UTC.
std::string timestamp();

}  // namespace cmt::tools
