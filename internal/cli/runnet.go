package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth"
)

// netFlags are the flags of "run" about networks, as they are typed.
type netFlags struct {
	networks                    []string
	connectFlags                // ip, ip6, mac, aliases: of the first network
	publishAll                  bool
	expose                      []string // ports and, with --rootfs host, paths
	dns, search, options, hosts []string
	hostname                    string
}

// ifname is the option of Docker's bridge driver that names an interface.
const ifname = "com.docker.network.endpoint.ifname"

// defaultNetwork is where a container is that asks for none; "default" is
// Docker's other name for it.
const defaultNetwork = "bridge"

func (n *netFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&n.networks, "network", nil, "a `network`, NAME or name=NAME,ip=ADDRESS,alias=NAME,gw-priority=N,rate-in=RATE,…, again for several; or none, host, container:NAME, ns:PATH (default: bridge)")
	f.StringVar(&n.ip, "ip", "", "IPv4 `address` on the first network")
	f.StringVar(&n.ip6, "ip6", "", "IPv6 `address` on the first network")
	f.StringVar(&n.mac, "mac-address", "", "Ethernet `address` on the first network")
	f.StringArrayVar(&n.aliases, "network-alias", nil, "another `name` on the first network")
	f.StringArrayVarP(&n.publish, "publish", "p", nil, "publish a `port`, as 8888:80, 127.0.0.1:53:53/udp or 8000-8002:80-82")
	f.BoolVarP(&n.publishAll, "publish-all", "P", false, "publish every port of the image and of --expose on a random one")
	f.StringArrayVar(&n.expose, "expose", nil, "a `port` or range for --publish-all; with --rootfs host a path that begins with \"/\": it is seen inside, copy-on-write")
	f.StringArrayVar(&n.dns, "dns", nil, "`address` of a name server")
	f.StringArrayVar(&n.search, "dns-search", nil, "`domain` to look names up in (. for none)")
	f.StringArrayVar(&n.options, "dns-option", nil, "an `option` of resolv.conf(5)")
	f.StringArrayVar(&n.hosts, "add-host", nil, "a line of /etc/hosts, as `NAME:ADDRESS`; host-gateway is the host's address")
	f.StringVarP(&n.hostname, "hostname", "h", "", "host `name` (default: the id)")
	f.SetNormalizeFunc(dockerNames)
	for _, name := range []string{
		"network", "ip", "ip6", "mac-address", "network-alias", "publish", "dns", "dns-search", "dns-option", "add-host", "hostname",
	} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// dockerNames are names of flags that Docker takes too, and does not show.
func dockerNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	switch name {
	case "net":
		name = "network"
	case "net-alias":
		name = "network-alias"
	case "dns-opt":
		name = "dns-option"
	case "time":
		name = "timeout"
	}
	return pflag.NormalizedName(name)
}

// net turns the flags into a wish.
func (n *netFlags) net(image bool) (berth.Net, error) {
	out, err := parseNetworks(n.networks)
	if err != nil {
		return out, err
	}
	if err := n.fits(out.Mode); err != nil {
		return out, err
	}
	if out.Mode == "" {
		if err := n.first(&out.Networks[0]); err != nil {
			return out, err
		}
	}
	if out.Ports, err = portSpecs(n.publish); err != nil {
		return out, err
	}
	exposed, err := n.exposed(image)
	if err != nil {
		return out, err
	}
	if n.publishAll {
		out.Ports = append(out.Ports, exposed...)
	}
	for _, x := range exposed {
		out.Exposed = append(out.Exposed, fmt.Sprintf("%d/%s", x.Port, x.Protocol))
	}
	return out, n.names(&out)
}

// fits refuses flags that have no meaning in a mode.
func (n *netFlags) fits(mode string) error {
	if mode == "" {
		return nil
	}
	kind, _, _ := strings.Cut(mode, ":")
	for _, f := range []struct {
		flag string
		set  bool
	}{{"--ip", n.ip != ""}, {"--ip6", n.ip6 != ""}, {"--mac-address", n.mac != ""}, {"--network-alias", len(n.aliases) > 0}} {
		if f.set {
			return fmt.Errorf("%s: with --network %s there is no network to have it on", f.flag, mode)
		}
	}
	if len(n.publish) > 0 || n.publishAll {
		return fmt.Errorf("--publish: %s", map[string]string{
			"none":      "with --network none there is nothing to lead to",
			"host":      "with --network host its ports are the host's",
			"container": "with --network " + mode + " ports are published of that container",
			"ns":        "with --network " + mode + " ports are published by 'berth publish path:" + strings.TrimPrefix(mode, "ns:") + " …'",
		}[kind])
	}
	if kind != "container" {
		return nil
	}
	for _, f := range []struct {
		flag string
		set  bool
	}{{"--hostname", n.hostname != ""}, {"--dns", len(n.dns) > 0}, {"--dns-search", len(n.search) > 0}, {"--dns-option", len(n.options) > 0}, {"--add-host", len(n.hosts) > 0}} {
		if f.set {
			return fmt.Errorf("%s: with --network %s it is that container's", f.flag, mode)
		}
	}
	return nil
}

// first puts the flags about the first network into it.
func (n *netFlags) first(a *berth.Attachment) error {
	o, err := n.connectFlags.options()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		flag  string
		twice bool
	}{
		{"ip", a.IP4.IsValid() && o.IP4.IsValid()}, {"ip6", a.IP6.IsValid() && o.IP6.IsValid()},
		{"mac-address", a.MAC != (berth.MAC{}) && o.MAC != (berth.MAC{})}, {"network-alias", len(a.Aliases) > 0 && len(o.Aliases) > 0},
	} {
		if f.twice {
			return fmt.Errorf("--%s: --network name=%s says it already", f.flag, a.Network)
		}
	}
	if o.IP4.IsValid() {
		a.IP4 = o.IP4
	}
	if o.IP6.IsValid() {
		a.IP6 = o.IP6
	}
	if o.MAC != (berth.MAC{}) {
		a.MAC = o.MAC
	}
	a.Aliases = append(a.Aliases, o.Aliases...)
	return checkAliases(a.Aliases)
}

func checkAliases(names []string) error {
	for _, s := range names {
		if err := berth.ValidName("alias", s); err != nil {
			return fmt.Errorf("--network-alias: %w", err)
		}
	}
	return nil
}

// exposed are the ports of --expose. Without an image they are for
// --publish-all.
func (n *netFlags) exposed(image bool) ([]berth.PortSpec, error) {
	var out []berth.PortSpec
	ports := slices.DeleteFunc(slices.Clone(n.expose), isPath)
	for _, w := range ports {
		if strings.Contains(w, ":") {
			return nil, fmt.Errorf("--expose %s: a port or a range is wanted, as 80 or 8000-8002/udp", quoted(w))
		}
		specs, err := berth.ParsePortSpec(w)
		if err != nil {
			return nil, fmt.Errorf("--expose: %w", err)
		}
		out = append(out, specs...)
	}
	switch {
	case image:
	case n.publishAll && len(ports) == 0:
		return nil, errors.New("--publish-all: no image says which ports there are: give --expose PORT too")
	case !n.publishAll && len(ports) > 0:
		return nil, fmt.Errorf("--expose %s: neighbours reach every port, and without an image nobody asks for a list: it goes with --publish-all", ports[0])
	}
	return out, nil
}

func isPath(s string) bool { return strings.HasPrefix(s, "/") }

// paths are what a container of --rootfs host sees too.
func (n *netFlags) paths(rootfs string) ([]string, error) {
	var out []string
	for _, w := range n.expose {
		if !isPath(w) {
			continue
		}
		if rootfs != "host" {
			return nil, fmt.Errorf("--expose %s: a path goes with --rootfs host; -v %s:%s opens it here", w, w, w)
		}
		clean, err := insidePath(w)
		if err != nil {
			return nil, fmt.Errorf("--expose %w", err)
		}
		if !slices.Contains(out, clean) {
			out = append(out, clean)
		}
	}
	return out, nil
}

// names reads the flags about names.
func (n *netFlags) names(out *berth.Net) error {
	for _, w := range n.dns {
		a, err := netip.ParseAddr(w)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("--dns %s: an address is wanted, as 192.0.2.53", quoted(w))
		}
		out.DNS = append(out.DNS, a.Unmap())
	}
	for _, w := range n.search {
		if w != "." && (!domain.MatchString(w) || len(w) > 253) {
			return fmt.Errorf("--dns-search %s: a domain is wanted, as example.org, or . for none", quoted(w))
		}
		out.DNSSearch = append(out.DNSSearch, w)
	}
	for _, w := range n.options {
		if !option.MatchString(w) {
			return fmt.Errorf("--dns-option %s: an option of resolv.conf(5) is wanted, as ndots:2", quoted(w))
		}
		out.DNSOptions = append(out.DNSOptions, w)
	}
	for _, w := range n.hosts {
		line, err := parseHost(w)
		if err != nil {
			return err
		}
		out.ExtraHosts = append(out.ExtraHosts, line)
	}
	// The kernel keeps 64 bytes.
	if n.hostname != "" && (!domain.MatchString(n.hostname) || len(n.hostname) > 64) {
		return fmt.Errorf("--hostname %s: letters, digits, \"-\", \"_\" and \".\", at most 64", quoted(n.hostname))
	}
	return nil
}

var (
	domain = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$`)
	option = regexp.MustCompile(`^[a-z0-9-]+(:[a-z0-9-]+)?$`)
)

// parseHost reads what follows --add-host, and returns NAME:ADDRESS.
func parseHost(s string) (string, error) {
	name, text, ok := strings.Cut(s, "=")
	if !ok {
		name, text, _ = strings.Cut(s, ":")
	}
	if text == "host-gateway" && domain.MatchString(name) {
		return name + ":" + text, nil
	}
	if len(text) > 2 && text[0] == '[' && text[len(text)-1] == ']' {
		text = text[1 : len(text)-1]
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || !domain.MatchString(name) {
		return "", fmt.Errorf("--add-host %s: NAME:ADDRESS is wanted, as db:10.0.0.7, or NAME:host-gateway", quoted(s))
	}
	return name + ":" + a.String(), nil
}

// parseNetworks reads every --network.
func parseNetworks(words []string) (berth.Net, error) {
	var out berth.Net
	for _, w := range words {
		mode, a, err := parseNetwork(w)
		if err != nil {
			return out, err
		}
		if mode != "" && len(words) > 1 {
			return out, fmt.Errorf("--network %s: it goes with no other --network", mode)
		}
		if mode != "" {
			out.Mode = mode
			return out, nil
		}
		if slices.ContainsFunc(out.Networks, func(x berth.Attachment) bool { return x.Network == a.Network }) {
			return out, fmt.Errorf("--network %s: it was named twice", a.Network)
		}
		out.Networks = append(out.Networks, a)
	}
	if len(words) == 0 {
		out.Networks = []berth.Attachment{{Network: defaultNetwork}}
	}
	return out, nil
}

// parseNetwork reads what follows --network: a mode, or a network to be
// connected to.
func parseNetwork(s string) (mode string, a berth.Attachment, err error) {
	kind, name, with := strings.Cut(s, ":")
	switch {
	case s == "none" || s == "host":
		return s, a, nil
	case with && kind == "container":
		if err := berth.ValidName("container", name); err != nil {
			return "", a, fmt.Errorf("--network: %w", err)
		}
		return s, a, nil
	case with && kind == "ns":
		if !isPath(name) || strings.ContainsRune(name, 0) {
			return "", a, fmt.Errorf("--network %s: ns:PATH is wanted, as ns:/run/netns/web", quoted(s))
		}
		return s, a, nil
	case !strings.Contains(s, "="):
		a.Network = s
	default:
		fields, cerr := csv.NewReader(strings.NewReader(s)).Read()
		if cerr != nil {
			return "", a, fmt.Errorf("--network %s: name=NAME,KEY=VALUE,… is wanted", quoted(s))
		}
		if a, err = parseAttachment(fields); err != nil {
			return "", a, fmt.Errorf("--network %s: %w", quoted(s), err)
		}
		if a.Network == "none" || a.Network == "host" {
			return "", a, fmt.Errorf("--network %s: %s is no network", quoted(s), a.Network)
		}
	}
	if a.Network == "default" {
		a.Network = defaultNetwork
	}
	if err := berth.ValidName("network", a.Network); err != nil {
		return "", a, fmt.Errorf("--network: %w", err)
	}
	return "", a, nil
}

func parseAttachment(fields []string) (a berth.Attachment, err error) {
	var c connectFlags
	for _, f := range fields {
		key, value, with := strings.Cut(f, "=")
		key, value = strings.TrimSpace(strings.ToLower(key)), strings.TrimSpace(value)
		if !with {
			return a, fmt.Errorf("%s: KEY=VALUE is wanted", quoted(f))
		}
		switch key {
		case "name":
			a.Network = value
		case "alias":
			c.aliases = append(c.aliases, value)
		case "ip":
			c.ip = value
		case "ip6":
			c.ip6 = value
		case "mac-address":
			c.mac = value
		case "gw-priority":
			if a.GwPriority, err = strconv.Atoi(value); err != nil {
				return a, fmt.Errorf("%s: a number is wanted", f)
			}
		case "driver-opt":
			option, word, _ := strings.Cut(value, "=")
			if option != ifname || word == "" {
				return a, fmt.Errorf("driver-opt %s is refused: only %s=NAME is known", quoted(value), ifname)
			}
			a.Interface = word
		case "link-local-ip":
			return a, fmt.Errorf("%s is refused: %s", f, linkLocal)
		default:
			if !c.set(key, value) {
				return a, fmt.Errorf("no key %s: name, alias, ip, ip6, mac-address, gw-priority, rate-in, rate-out, burst or driver-opt is wanted", quoted(key))
			}
		}
	}
	if a.Network == "" {
		return a, errors.New("name=NETWORK is missing")
	}
	o, err := c.options()
	if err != nil {
		return a, err
	}
	a.IP4, a.IP6, a.MAC, a.Aliases, a.Rates = o.IP4, o.IP6, o.MAC, o.Aliases, o.Rates
	return a, checkAliases(a.Aliases)
}
