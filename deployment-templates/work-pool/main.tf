# Work pools with Terraform and Prefect's provider. It reads PREFECT_API_URL and PREFECT_API_KEY from the
# environment; neither gets into the state.
terraform {
  required_version = ">= 1.5"
  required_providers {
    prefect = {
      source  = "prefecthq/prefect"
      version = "~> 2.26"
    }
  }
}

provider "prefect" {}

locals {
  pools = {
    small          = { limit = 50 }
    gpu            = { limit = 8 }
    kuberay        = { limit = 20 }
    kuberay-shared = { limit = 100 }
    isolated       = { limit = 4 }
  }
}

resource "prefect_work_pool" "ray" {
  for_each = local.pools

  name              = "ray-${each.key}"
  type              = "ray"
  concurrency_limit = each.value.limit
  # Decoded and encoded again, so that Terraform ignores changes of white space.
  base_job_template = jsonencode(jsondecode(file("${path.module}/${each.key}.json")))
}

output "work_pools" {
  description = "Start a worker for each: prefect worker start --type ray --no-create-pool-if-not-found --pool <name>"
  value       = [for pool in prefect_work_pool.ray : pool.name]
}
