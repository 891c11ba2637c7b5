// Package berth holds the nouns of Berth as plain data: networks, sandboxes,
// endpoints and ports, and the errors every layer reports.
//
// A [Network] is one L2 segment with its subnets and its way out. A [Sandbox]
// is a network namespace. An [Endpoint] is a sandbox's connection to one
// network. A [Port] is a host address, port and protocol that leads to an
// endpoint. Package berth/engine turns them into what the kernel holds.
//
// Nothing here touches the kernel or the disk.
package berth
