package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"berth"
	"berth/engine"
)

// A config is what one call is told on standard input and in CNI_ARGS.
type config struct {
	CNIVersion string
	Name       string
	Root, Run  string

	network    string // Berth's
	spec       engine.NetworkSpec
	internal   *bool // nil: it is not said
	gwPriority int
	dns        types.DNS
	ipam       ipamConfig

	ports   []berth.PortSpec
	ips     []netip.Addr
	mac     berth.MAC
	aliases []string
	rates   bandwidthConfig
	labels  map[string]string

	remove     bool // DEL and GC: as little as possible is an error
	prevResult map[string]any
	valid      []types.GCAttachment
}

// An ipamConfig is who gives addresses: the engine, or a program.
type ipamConfig struct {
	program string // "" or "host-local" is the engine
	ranges  []engine.AddrRange
	dns     types.DNS
	legacy  rangeConfig // subnet and its bounds beside type
}

// decode reads a configuration. What is taken away needs little of it: remove
// leaves the rest unread, so that an attachment can go whose configuration has
// become wrong.
func decode(b []byte, remove bool) (c config, err error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return c, fail(codeDecode, "the configuration is no JSON object: %v", err)
	}
	if raw == nil {
		return c, fail(codeDecode, "the configuration is no JSON object: it is null")
	}
	c.remove = remove
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		k, ok := topKeys[name]
		if remove && !k.remove {
			continue
		}
		if !ok && strings.HasPrefix(name, "cni.dev/") {
			continue // the specification's own, not for plugins
		}
		if err := take(&c, k, ok, name, raw[name]); err != nil {
			return c, err
		}
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // what the specification says is meant
	}
	if c.Name == "" {
		return c, fail(codeConfig, "the configuration has no name")
	}
	if why := utils.ValidateNetworkName(c.Name); why != nil {
		return c, fail(codeConfig, "name %q: %s", short(c.Name), why.Msg)
	}
	if c.network == "" {
		c.network = c.Name
	}
	if err := berth.ValidName("network", c.network); err != nil {
		return c, fail(codeConfig, "%v", err)
	}
	if remove {
		return c, nil
	}
	return c, c.finish()
}

// finish checks what keys say together.
func (c *config) finish() error {
	if c.ipam.legacy.Subnet != "" {
		if err := c.addRange(c.ipam.legacy, "ipam"); err != nil {
			return err
		}
	} else if c.ipam.legacy != (rangeConfig{}) {
		return fail(codeConfig, "ipam: rangeStart, rangeEnd and gateway need a subnet")
	}
	if _, err := c.rates.rates(); err != nil {
		return err
	}
	c.spec.Name = c.network
	if len(c.spec.Subnets) > 0 && c.delegated() {
		return fail(codeConfig, "subnets and ipam.type %s: one of them says where addresses come from", short(c.ipam.program))
	}
	return nil
}

// delegated reports whether a program gives the addresses.
func (c *config) delegated() bool { return c.ipam.program != "" && c.ipam.program != "host-local" }

// take sets one key, or says why it cannot.
func take(c *config, k key, known bool, where string, raw json.RawMessage) error {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return nil
	}
	if !known {
		return unsupported(where, raw, "there is no such key")
	}
	if k.set == nil {
		return unsupported(where, raw, k.why)
	}
	if err := k.set(c, raw); err != nil {
		var e *Error
		if errors.As(err, &e) {
			return err
		}
		return fail(codeConfig, "%s: %v", where, err)
	}
	return nil
}

func unsupported(where string, raw json.RawMessage, why string) error {
	return &Error{Code: codeUnsupported, Msg: fmt.Sprintf("unsupported key %s: %s", short(where), short(oneLine(string(raw)))), Details: why}
}

// strict decodes a value and refuses what is not known.
func strict(raw json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fail(codeDecode, "decode %s: %v", short(string(raw)), err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(codeDecode, "decode %s: more than one value", short(string(raw)))
	}
	return nil
}

// plain sets a field of a plain type.
func plain[T any](field func(*config) *T) func(*config, json.RawMessage) error {
	return func(c *config, raw json.RawMessage) error { return strict(raw, field(c)) }
}

// inside takes the keys of an object below one key.
func inside(where string, keys map[string]key) func(*config, json.RawMessage) error {
	return func(c *config, raw json.RawMessage) error {
		var obj map[string]json.RawMessage
		if err := strict(raw, &obj); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(obj)) {
			k, ok := keys[name]
			if err := take(c, k, ok, where+"."+name, obj[name]); err != nil {
				return err
			}
		}
		return nil
	}
}

// takeIPAM takes the keys of host-local. Those of another program are its own.
func takeIPAM(c *config, raw json.RawMessage) error {
	var who struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &who); err != nil {
		return fail(codeDecode, "decode ipam: %v", err)
	}
	c.ipam.program = who.Type
	if strings.ContainsRune(who.Type, '/') {
		return fail(codeConfig, "ipam.type %q: the name of a program in CNI_PATH is wanted", short(who.Type))
	}
	if c.remove || c.delegated() {
		return nil
	}
	return inside("ipam", ipamKeys)(c, raw)
}

// A subnetConfig is one of the key subnets: a prefix, or an object.
type subnetConfig struct {
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`
	Range   string `json:"range"`
}

func takeSubnets(c *config, raw json.RawMessage) error {
	var all []json.RawMessage
	if err := strict(raw, &all); err != nil {
		return err
	}
	for _, one := range all {
		var s subnetConfig
		if json.Unmarshal(one, &s.Subnet) != nil {
			if err := strict(one, &s); err != nil {
				return err
			}
		}
		sub, err := s.parse()
		if err != nil {
			return err
		}
		c.spec.Subnets = append(c.spec.Subnets, sub)
	}
	return nil
}

func (s subnetConfig) parse() (sub berth.Subnet, err error) {
	if sub.Prefix, err = netip.ParsePrefix(s.Subnet); err != nil {
		return sub, fmt.Errorf("subnet %q: not a prefix", short(s.Subnet))
	}
	if s.Gateway != "" {
		if sub.Gateway, err = netip.ParseAddr(s.Gateway); err != nil {
			return sub, fmt.Errorf("gateway %q: not an address", short(s.Gateway))
		}
	}
	if s.Range != "" {
		if sub.Range, err = netip.ParsePrefix(s.Range); err != nil {
			return sub, fmt.Errorf("range %q: not a prefix", short(s.Range))
		}
	}
	return sub, nil
}

func takeOptions(c *config, raw json.RawMessage) error {
	var o map[string]string
	if err := strict(raw, &o); err != nil {
		return err
	}
	for name, v := range o {
		c.option(name, v)
	}
	return nil
}

func (c *config) option(name, value string) {
	if c.spec.Options == nil {
		c.spec.Options = map[string]string{}
	}
	c.spec.Options[name] = value
}

func takeMTU(c *config, raw json.RawMessage) error {
	var n int
	if err := strict(raw, &n); err != nil {
		return err
	}
	if n != 0 { // as with the reference plugins
		c.option("mtu", fmt.Sprint(n))
	}
	return nil
}

func takeInternal(c *config, raw json.RawMessage) error {
	c.internal = &c.spec.Internal
	return strict(raw, c.internal)
}

func takeIPv4(c *config, raw json.RawMessage) error {
	var v bool
	err := strict(raw, &v)
	c.spec.NoIPv4 = !v
	return err
}

// takeArgs of the key args: what is not known is for others, the convention
// says.
func takeArgsKey(c *config, raw json.RawMessage) error {
	var args struct {
		CNI struct {
			IPs    []string `json:"ips"`
			Labels []struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"labels"`
		} `json:"cni"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return fail(codeDecode, "decode args: %v", err)
	}
	for _, l := range args.CNI.Labels {
		c.label(l.Key, l.Value)
	}
	if len(c.ips) > 0 { // runtimeConfig's count more
		return nil
	}
	return c.addIPs(args.CNI.IPs)
}

func (c *config) label(k, v string) {
	if c.labels == nil {
		c.labels = map[string]string{}
	}
	if _, ours := c.labels[k]; !ours && k != "" {
		c.labels[k] = v
	}
}

// addIPs takes addresses, with or without the length of their prefix.
func (c *config) addIPs(all []string) error {
	for _, s := range all {
		bare, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(bare)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is no address", short(s))
		}
		c.ips = append(c.ips, a.Unmap())
	}
	return nil
}
