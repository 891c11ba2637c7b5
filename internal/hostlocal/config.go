// Package hostlocal hands out addresses as the CNI reference plugin
// "host-local" does, from the same configuration and with the same files, so
// that other programs read them and either can follow the other.
package hostlocal

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// DefaultDir is where the files are unless dataDir says otherwise.
const DefaultDir = "/var/lib/cni/networks"

// A Config is what a network's configuration says of its addresses.
type Config struct {
	Name       string
	CNIVersion string
	DataDir    string
	ResolvConf string
	Routes     []*types.Route

	sets  []set
	asked []netip.Addr
}

// A span is the addresses of a subnet that are handed out.
type span struct {
	subnet      netip.Prefix
	first, last netip.Addr
	gateway     netip.Addr
}

// A set are spans of one family, of which an attachment gets one address.
type set []span

type spanConfig struct {
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Subnet     string `json:"subnet"`
	Gateway    string `json:"gateway"`
}

type netConfig struct {
	Name       string `json:"name"`
	CNIVersion string `json:"cniVersion"`
	IPAM       *struct {
		spanConfig
		Routes     []*types.Route `json:"routes"`
		DataDir    string         `json:"dataDir"`
		ResolvConf string         `json:"resolvConf"`
		Ranges     [][]spanConfig `json:"ranges"`
	} `json:"ipam"`
	RuntimeConfig struct {
		IPRanges [][]spanConfig `json:"ipRanges"`
		IPs      []string       `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

type envArgs struct {
	types.CommonArgs
	IP types.UnmarshallableString `json:"ip,omitempty"`
}

// Load reads the configuration of a network, and CNI_ARGS.
func Load(conf []byte, args string) (*Config, error) {
	var n netConfig
	if err := json.Unmarshal(conf, &n); err != nil {
		return nil, err
	}
	if n.IPAM == nil {
		return nil, said("IPAM config missing 'ipam' key")
	}
	c := &Config{Name: n.Name, CNIVersion: n.CNIVersion, DataDir: n.IPAM.DataDir, ResolvConf: n.IPAM.ResolvConf, Routes: n.IPAM.Routes}
	if c.DataDir == "" {
		c.DataDir = DefaultDir
	}
	var env envArgs
	if args != "" {
		if err := types.LoadArgs(args, &env); err != nil {
			return nil, err
		}
	}
	asked := slices.Concat([]string{string(env.IP)}, n.Args.CNI.IPs, n.RuntimeConfig.IPs)
	for _, s := range asked {
		if s == "" {
			continue
		}
		a, err := parseIP(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(c.asked, a) {
			c.asked = append(c.asked, a)
		}
	}
	ranges := n.IPAM.Ranges
	if n.IPAM.Subnet != "" {
		ranges = append([][]spanConfig{{n.IPAM.spanConfig}}, ranges...)
	}
	return c, c.take(append(n.RuntimeConfig.IPRanges, ranges...))
}

// said is an error in the words of the reference plugin, which callers know.
func said(format string, args ...any) error { return fmt.Errorf(format, args...) }

// parseIP reads an address, with or without a length.
func parseIP(s string) (netip.Addr, error) {
	bare, _, _ := strings.Cut(s, "/")
	a, err := netip.ParseAddr(bare)
	if err != nil || a.Zone() != "" {
		return a, fmt.Errorf("cannot understand ip: %q", s)
	}
	return a.Unmap(), nil
}

// take checks the ranges.
func (c *Config) take(ranges [][]spanConfig) error {
	if len(ranges) == 0 {
		return errors.New("no IP ranges specified")
	}
	families := map[bool]int{}
	for i, r := range ranges {
		s, err := newSet(r)
		if err != nil {
			return fmt.Errorf("invalid range set %d: %w", i, err)
		}
		families[s[0].first.Is4()]++
		for j, o := range c.sets {
			if s.overlaps(o) {
				return fmt.Errorf("range set %d overlaps with %d", j, i)
			}
		}
		c.sets = append(c.sets, s)
	}
	if families[true] > 1 || families[false] > 1 {
		if several, err := version.GreaterThanOrEqualTo(c.CNIVersion, "0.3.0"); err != nil || !several {
			return said("CNI version %s does not support more than 1 address per family", c.CNIVersion)
		}
	}
	return nil
}

func newSet(all []spanConfig) (set, error) {
	if len(all) == 0 {
		return nil, errors.New("empty range set")
	}
	var s set
	for _, one := range all {
		p, err := newSpan(one)
		if err != nil {
			return nil, err
		}
		for _, o := range s {
			if o.first.Is4() != p.first.Is4() {
				return nil, errors.New("mixed address families")
			}
			if o.overlaps(p) {
				return nil, fmt.Errorf("subnets %s and %s overlap", o, p)
			}
		}
		s = append(s, p)
	}
	return s, nil
}

// newSpan puts in what is not said: the first address is the gateway's, the
// last of IPv4 is the one before the broadcast address.
func newSpan(c spanConfig) (span, error) {
	p, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return span{}, fmt.Errorf("invalid CIDR address: %s", c.Subnet)
	}
	if p.Bits() > p.Addr().BitLen()-2 {
		return span{}, said("Network %s too small to allocate from", p)
	}
	if p != p.Masked() {
		return span{}, said("Network has host bits set. For a subnet mask of length %d the network address is %s", p.Bits(), p.Masked().Addr())
	}
	s := span{subnet: p}
	first, last := p.Addr().Next(), lastOf(p)
	for _, b := range []struct {
		name, text string
		into       *netip.Addr
		usual      netip.Addr
	}{
		{"Gateway", c.Gateway, &s.gateway, first},
		{"RangeStart", c.RangeStart, &s.first, first},
		{"RangeEnd", c.RangeEnd, &s.last, last},
	} {
		if *b.into = b.usual; b.text == "" {
			continue
		}
		if *b.into, err = parseIP(b.text); err != nil || strings.Contains(b.text, "/") {
			return s, fmt.Errorf("invalid IP address: %s", b.text)
		}
		if b.name != "Gateway" && !p.Contains(*b.into) {
			return s, fmt.Errorf("%s %s not in network %s", b.name, *b.into, p)
		}
	}
	if s.last.Less(s.first) {
		return s, said("RangeEnd %s not in network %s: it is before RangeStart %s", s.last, p, s.first)
	}
	return s, nil
}

// lastOf is the last address of a subnet; of IPv4 the one before it.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	if a.Is4() {
		return a.Prev()
	}
	return a
}

// contains reports whether an address is handed out by the span.
func (s span) contains(a netip.Addr) bool {
	return s.subnet.Contains(a) && !a.Less(s.first) && !s.last.Less(a)
}

func (s span) overlaps(o span) bool {
	return s.first.Is4() == o.first.Is4() && !s.last.Less(o.first) && !o.last.Less(s.first)
}

// String implements fmt.Stringer.
func (s span) String() string { return s.first.String() + "-" + s.last.String() }

func (s set) overlaps(o set) bool {
	return slices.ContainsFunc(s, func(a span) bool { return slices.ContainsFunc(o, a.overlaps) })
}

// of is the index of the span that holds an address, or -1.
func (s set) of(a netip.Addr) int {
	return slices.IndexFunc(s, func(p span) bool { return p.contains(a) })
}

// String implements fmt.Stringer.
func (s set) String() string {
	var all []string
	for _, p := range s {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}
