package cni

import (
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"berth"
)

// A key is one key of a configuration. Without set it is refused, and why says
// what to do instead.
type key struct {
	verdict string // same, differs, own or refused
	why     string
	set     func(*config, json.RawMessage) error
	remove  bool // DEL and GC read it
}

const (
	same    = "same"    // it means what it means to the reference plugins, or in the specification
	differs = "differs" // it is heeded, but not in every way as there
	own     = "own"     // only Berth has it
	refused = "refused"
)

func no(why string) key { return key{verdict: refused, why: why} }

// nothing is for what is read elsewhere, or by the runtime.
func nothing(*config, json.RawMessage) error { return nil }

const (
	elsewhere = "it is of the plugin that the name says; type berth has no such part: "
	shaped    = "all that enters or leaves an attachment is shaped"
)

var topKeys = map[string]key{
	"cniVersion":                {same, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0", plain(func(c *config) *string { return &c.CNIVersion }), true},
	"name":                      {same, "", plain(func(c *config) *string { return &c.Name }), true},
	"type":                      {same, "", plain(func(*config) *string { return new(string) }), true},
	"capabilities":              {same, "the runtime reads it", nothing, false},
	"runtimeConfig":             {same, "see below", inside("runtimeConfig", runtimeKeys), false},
	"args":                      {same, "`cni.ips` and `cni.labels`; what else is in it is for other plugins", takeArgsKey, false},
	"prevResult":                {differs, "in a chain behind another plugin: its interface, bridge and addresses are recorded as found, get ports and limits, and are passed on", plain(func(c *config) *map[string]any { return &c.prevResult }), false},
	"dns":                       {same, "it is in the result", plain(func(c *config) *types.DNS { return &c.dns }), false},
	"ipam":                      {same, "see below; without it the engine gives addresses", nil, true},
	"mtu":                       {same, "of the network: of bridge and both ends", takeMTU, false},
	"cni.dev/valid-attachments": {same, "of GC", plain(func(c *config) *[]types.GCAttachment { return &c.valid }), true},

	"network":    {own, "Berth's name of the network; default: `name`", plain(func(c *config) *string { return &c.network }), true},
	"subnets":    {own, "prefixes, or objects with `subnet`, `gateway` and `range`", takeSubnets, false},
	"ipv4":       {own, "false: none", takeIPv4, false},
	"ipv6":       {own, "true: a subnet of IPv6 too", plain(func(c *config) *bool { return &c.spec.IPv6 }), false},
	"internal":   {own, "no way out", takeInternal, false},
	"options":    {own, "as `berth network create --opt`: `bridge`, `host`, `icc`, `masquerade`, `mtu`", takeOptions, false},
	"labels":     {own, "of the network", plain(func(c *config) *map[string]string { return &c.spec.Labels }), false},
	"gwPriority": {own, "the attachment with the highest gives the default route", plain(func(c *config) *int { return &c.gwPriority }), false},
	"root":       {own, "directory of what outlives a reboot; default /var/lib/berth", plain(func(c *config) *string { return &c.Root }), true},
	"run":        {own, "directory of what does not; default /run/berth", plain(func(c *config) *string { return &c.Run }), true},

	"bridge":                    no("write it as options.bridge"),
	"isGateway":                 no("a network of Berth has its gateway on the host; internal has no way out"),
	"isDefaultGateway":          no("the default route leads there unless gwPriority says otherwise, or internal"),
	"forceAddress":              no("a bridge that Berth makes has the address of its network, a bridge that was there keeps its own"),
	"ipMasq":                    no("write it as options.masquerade"),
	"ipMasqBackend":             no("there is nftables only"),
	"hairpinMode":               no("it is always on"),
	"promiscMode":               no("a published port is reached from its own sandbox without it"),
	"vlan":                      no("name a bridge with that VLAN as options.bridge"),
	"vlanTrunk":                 no("name a bridge with those VLANs as options.bridge"),
	"preserveDefaultVlan":       no("VLANs of the bridge are not touched"),
	"macspoofchk":               no("who speaks as a neighbour inside one network is not looked at"),
	"enabledad":                 no("addresses are unique by the store; the kernel is not made to try"),
	"disableContainerInterface": no("an attachment is up"),
	"portIsolation":             no("write it as options.icc=false"),
	"snat":                      no("a client's address is kept; only what leaves is masqueraded"),
	"masqAll":                   no("a client's address is kept; only what leaves is masqueraded"),
	"backend":                   no("there is nftables only"),
	"markMasqBit":               no("no mark is used"),
	"externalSetMarkChain":      no("no mark is used"),
	"conditionsV4":              no("a published port is an element of a map and takes no iptables conditions"),
	"conditionsV6":              no("a published port is an element of a map and takes no iptables conditions"),
	"iptablesAdminChainName":    no("there is nftables only; rules of your own go into a table of your own"),
	"firewalldZone":             no("Berth edits no other tool's rules; berth check names what they drop"),
	"ingressPolicy":             no("networks are apart always; options.icc=false sets neighbours apart too"),
	"ingressRate":               {same, "of every attachment; the capability counts more", plain(func(c *config) *uint64 { return &c.rates.IngressRate }), false},
	"ingressBurst":              {same, "of every attachment; the capability counts more", plain(func(c *config) *uint64 { return &c.rates.IngressBurst }), false},
	"egressRate":                {same, "of every attachment; the capability counts more", plain(func(c *config) *uint64 { return &c.rates.EgressRate }), false},
	"egressBurst":               {same, "of every attachment; the capability counts more", plain(func(c *config) *uint64 { return &c.rates.EgressBurst }), false},
	"unshapedSubnets":           no(shaped),
	"shapedSubnets":             no(shaped),
	"sysctl":                    no(elsewhere + "chain the plugin tuning behind"),
	"mac":                       no("give it for one attachment: capability mac, or MAC in CNI_ARGS"),
	"promisc":                   no(elsewhere + "chain the plugin tuning behind"),
	"allmulti":                  no(elsewhere + "chain the plugin tuning behind"),
	"txQLen":                    no(elsewhere + "chain the plugin tuning behind"),
	"dataDir":                   no("it is a key of ipam; addresses are in Berth's own store"),
}

var ipamKeys = map[string]key{
	"type":       {differs, "none or `host-local`: the engine, with the ranges below; any other is executed from CNI_PATH, with its own keys", plain(func(c *config) *string { return &c.ipam.program }), true},
	"subnet":     {same, "", plain(func(c *config) *string { return &c.ipam.legacy.Subnet }), false},
	"rangeStart": {same, "", plain(func(c *config) *string { return &c.ipam.legacy.RangeStart }), false},
	"rangeEnd":   {same, "", plain(func(c *config) *string { return &c.ipam.legacy.RangeEnd }), false},
	"gateway":    {same, "", plain(func(c *config) *string { return &c.ipam.legacy.Gateway }), false},
	"ranges":     {differs, "at most one set of each family: an attachment has one address of each", takeRanges("ipam.ranges"), false},
	"routes":     {differs, "default routes, which are there anyway; others are refused", takeRoutes, false},
	"resolvConf": {same, "", takeResolvConf, false},
	"dataDir":    no("addresses are in Berth's own store, which a reboot empties as the kernel is emptied"),
}

var runtimeKeys = map[string]key{
	"portMappings":   {same, "`hostPort`, `containerPort`, `protocol` (tcp, udp, sctp), `hostIP`; a port that belongs to somebody else is an error", takePorts, false},
	"ips":            {same, "one of each family", takeIPs, false},
	"mac":            {same, "", plain(func(c *config) *berth.MAC { return &c.mac }), false},
	"ipRanges":       {differs, "as `ipam.ranges`", takeRanges("runtimeConfig.ipRanges"), false},
	"aliases":        {same, "recorded with the endpoint; a list, or as Podman gives it, an object with the list of each network", takeAliases, false},
	"dns":            {same, "it is in the result", takeRuntimeDNS, false},
	"bandwidth":      {same, "`ingressRate`, `ingressBurst`, `egressRate`, `egressBurst` in bits; a rate without a burst gets what suits it", plain(func(c *config) *bandwidthConfig { return &c.rates }), false},
	"infinibandGUID": no("an attachment is an Ethernet link"),
	"deviceID":       no("an attachment is a virtual link"),
	"cgroupPath":     no("nothing here goes by cgroup"),
}

// argKeys are of CNI_ARGS.
var argKeys = map[string]key{
	"IP":            {verdict: same, why: "an address, with or without a length; `args.cni.ips` and the capability count more"},
	"MAC":           {verdict: same, why: "the capability counts more"},
	"IgnoreUnknown": {verdict: same, why: "1 or true: other keys are no error"},
	"K8S_POD_*":     {verdict: same, why: "kept as labels of the endpoint"},
}

func init() { // it names its own table
	k := topKeys["ipam"]
	k.set = takeIPAM
	topKeys["ipam"] = k
}

func takeIPs(c *config, raw json.RawMessage) error {
	var all []string
	if err := strict(raw, &all); err != nil {
		return err
	}
	c.ips = nil
	return c.addIPs(all)
}

// takeAliases takes a list of names. Podman 4 gives one for each network, as the
// plugin dnsname wants it, whatever the capability says.
func takeAliases(c *config, raw json.RawMessage) error {
	var of map[string][]string
	if json.Unmarshal(raw, &of) == nil {
		c.aliases = of[c.Name]
		return nil
	}
	return strict(raw, &c.aliases)
}

func takeRuntimeDNS(c *config, raw json.RawMessage) error {
	var d struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	}
	if err := strict(raw, &d); err != nil {
		return err
	}
	c.dns.Nameservers, c.dns.Search, c.dns.Options = d.Servers, d.Searches, d.Options
	return nil
}

func takePorts(c *config, raw json.RawMessage) error {
	var all []struct {
		HostPort      int    `json:"hostPort"`
		ContainerPort int    `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	}
	if err := json.Unmarshal(raw, &all); err != nil { // runtimes add fields of their own
		return fail(codeDecode, "decode portMappings: %v", err)
	}
	for _, p := range all {
		s, err := portSpec(p.HostPort, p.ContainerPort, p.Protocol, p.HostIP)
		if err != nil {
			return fmt.Errorf("%d:%d/%s: %w", p.HostPort, p.ContainerPort, short(p.Protocol), err)
		}
		c.ports = append(c.ports, s)
	}
	return nil
}
