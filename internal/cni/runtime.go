package cni

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"berth"
	"berth/engine"
)

// portSpec turns a port mapping into what is published.
func portSpec(host, inside int, protocol, hostIP string) (s berth.PortSpec, err error) {
	for _, p := range []int{host, inside} {
		if p < 1 || p > 65535 {
			return s, fmt.Errorf("port %d: a port is 1 to 65535", p)
		}
	}
	s = berth.PortSpec{Protocol: berth.TCP, HostLow: uint16(host), HostHigh: uint16(host), Port: uint16(inside)}
	if protocol != "" {
		s.Protocol = berth.Protocol(strings.ToLower(protocol))
	}
	switch s.Protocol {
	case berth.TCP, berth.UDP, berth.SCTP:
	default:
		return s, fmt.Errorf("protocol %q: there are tcp, udp and sctp", short(protocol))
	}
	if hostIP != "" {
		if s.HostIP, err = netip.ParseAddr(hostIP); err != nil || s.HostIP.Zone() != "" {
			return s, fmt.Errorf("hostIP %q: not an address", short(hostIP))
		}
		s.HostIP = s.HostIP.Unmap()
	}
	return s, nil
}

// A bandwidthConfig is how much may pass, seen from the container, in bits.
type bandwidthConfig struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

func (b bandwidthConfig) rates() (berth.Rates, error) {
	r := berth.Rates{In: berth.Rate{Bits: b.IngressRate, Burst: b.IngressBurst}, Out: berth.Rate{Bits: b.EgressRate, Burst: b.EgressBurst}}
	for _, one := range []berth.Rate{r.In, r.Out} {
		if one.Bits == 0 && one.Burst != 0 {
			return r, fail(codeConfig, "bandwidth: a burst of %d bits without a rate", one.Burst)
		}
	}
	if err := r.Check(); err != nil {
		return r, fail(codeConfig, "bandwidth: %v", err)
	}
	return r, nil
}

// A rangeConfig is host-local's way to say which addresses of a subnet are
// handed out.
type rangeConfig struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// takeRanges takes sets of ranges: the ranges of one set are tried in order.
func takeRanges(where string) func(*config, json.RawMessage) error {
	return func(c *config, raw json.RawMessage) error {
		var sets [][]rangeConfig
		if err := strict(raw, &sets); err != nil {
			return err
		}
		seen := map[bool]bool{}
		for _, set := range sets {
			var v4 bool
			for i, r := range set {
				p, err := netip.ParsePrefix(r.Subnet)
				if err != nil {
					return fmt.Errorf("subnet %q: not a prefix", short(r.Subnet))
				}
				if i > 0 && p.Addr().Is4() != v4 {
					return fmt.Errorf("%s is of another family than the rest of its set", r.Subnet)
				}
				v4 = p.Addr().Is4()
				if err := c.addRange(r, where); err != nil {
					return err
				}
			}
			if len(set) > 0 && seen[v4] {
				return &Error{Code: codeUnsupported, Msg: "unsupported key " + where + ": " + short(string(raw)),
					Details: "a second set of one family: an attachment has one address of each"}
			}
			seen[v4] = seen[v4] || len(set) > 0
		}
		return nil
	}
}

// addRange adds a subnet, if it is new, and a range of it.
func (c *config) addRange(r rangeConfig, where string) error {
	sub, err := subnetConfig{Subnet: r.Subnet, Gateway: r.Gateway}.parse()
	if err != nil {
		return fail(codeConfig, "%s: %v", where, err)
	}
	sub.Prefix = sub.Prefix.Masked()
	within := engine.AddrRange{First: sub.Prefix.Addr(), Last: lastOf(sub.Prefix)}
	for _, b := range []struct {
		text string
		into *netip.Addr
	}{{r.RangeStart, &within.First}, {r.RangeEnd, &within.Last}} {
		if b.text == "" {
			continue
		}
		a, err := netip.ParseAddr(b.text)
		if err != nil || !sub.Prefix.Contains(a) {
			return fail(codeConfig, "%s: %q is no address of %s", where, short(b.text), sub.Prefix)
		}
		*b.into = a
	}
	if within.Last.Less(within.First) {
		return fail(codeConfig, "%s: %s is behind %s", where, within.First, within.Last)
	}
	c.ipam.ranges = append(c.ipam.ranges, within)
	for _, s := range c.spec.Subnets {
		if s.Prefix == sub.Prefix {
			return nil
		}
	}
	c.spec.Subnets = append(c.spec.Subnets, sub)
	return nil
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// takeRoutes takes the default routes, which an attachment has anyway.
func takeRoutes(c *config, raw json.RawMessage) error {
	var all []types.Route
	if err := json.Unmarshal(raw, &all); err != nil {
		return fail(codeDecode, "decode ipam.routes: %v", err)
	}
	for _, r := range all {
		if err := checkRoute(&r); err != nil {
			return err
		}
	}
	return nil
}

func checkRoute(r *types.Route) error {
	if ones, _ := r.Dst.Mask.Size(); ones == 0 && r.MTU == 0 && r.AdvMSS == 0 && r.Priority == 0 && r.Table == nil && r.Scope == nil {
		return nil
	}
	return &Error{Code: codeUnsupported, Msg: fmt.Sprintf("unsupported key routes: %s", r.Dst.String()),
		Details: "everything outside of its networks is reached by the default route, which an attachment has anyway"}
}

// takeResolvConf puts what a file in the form of resolv.conf(5) says into the
// result.
func takeResolvConf(c *config, raw json.RawMessage) error {
	var path string
	if err := strict(raw, &path); err != nil || path == "" {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(codeIO, "ipam.resolvConf: %v", err)
	}
	defer f.Close()
	d := &c.ipam.dns
	s := bufio.NewScanner(f)
	for s.Scan() {
		words := strings.Fields(s.Text())
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			d.Nameservers = append(d.Nameservers, words[1])
		case "domain":
			d.Domain = words[1]
		case "search":
			d.Search = words[1:]
		case "options":
			d.Options = words[1:]
		}
	}
	return s.Err()
}

// takeArgs takes CNI_ARGS. Remove reads nothing of it.
func (c *config) takeArgs(args string, remove bool) error {
	if args == "" || remove {
		return nil
	}
	var unknown []string
	ignore := false
	var ip string
	for pair := range strings.SplitSeq(args, ";") {
		k, v, ok := strings.Cut(pair, "=")
		if pair == "" {
			continue
		}
		switch {
		case !ok || k == "":
			return fail(codeEnvironment, "CNI_ARGS: %q is no KEY=VALUE", short(pair))
		case k == "IgnoreUnknown":
			ignore = v == "1" || strings.EqualFold(v, "true")
		case k == "IP":
			ip = v
		case k == "MAC":
			if c.mac != (berth.MAC{}) {
				continue
			}
			mac, err := berth.ParseMAC(v)
			if err != nil {
				return fail(codeEnvironment, "CNI_ARGS: %v", err)
			}
			c.mac = mac
		case strings.HasPrefix(k, "K8S_POD_"):
			c.label(k, v)
		default:
			unknown = append(unknown, k)
		}
	}
	if len(unknown) > 0 && !ignore {
		return fail(codeEnvironment, "CNI_ARGS: no such key: %s; with IgnoreUnknown=1 it is no error", short(strings.Join(unknown, ", ")))
	}
	if ip != "" && len(c.ips) == 0 {
		if err := c.addIPs([]string{ip}); err != nil {
			return fail(codeEnvironment, "CNI_ARGS: IP: %v", err)
		}
	}
	return nil
}
