package cni

import (
	"encoding/json"

	"berth"
)

// takePrevious takes the result of the plugin before, which has made the
// interface: it is found, not made, and its bridge is the network's.
func (c *call) takePrevious() error {
	if c.conf.prevResult == nil {
		return nil
	}
	if c.conf.ipam.program != "" || len(c.conf.ips) > 0 || c.conf.mac != (berth.MAC{}) {
		return fail(codeConfig, "prevResult: another plugin has made the interface, and ipam, ips and mac are its business")
	}
	raw, err := json.Marshal(c.conf.prevResult)
	if err != nil {
		return err
	}
	r, err := parseResult(raw, c.conf.CNIVersion)
	if err != nil {
		return fail(codeDecode, "prevResult: %v", err)
	}
	var onHost []string
	inside := false
	for _, l := range r.Interfaces {
		inside = inside || l.Name == c.ifname && l.Sandbox == c.netns
		if l.Sandbox == "" {
			onHost = append(onHost, l.Name)
		}
	}
	if !inside {
		return fail(codeConfig, "prevResult: there is no interface %s in %s: another plugin makes it before, or berth comes first", c.ifname, short(c.netns))
	}
	// A bridge comes before the end that is on it; a pair by itself has none.
	if _, said := c.conf.spec.Options["bridge"]; !said && len(onHost) > 1 {
		c.conf.option("bridge", onHost[0])
	}
	if len(onHost) < 2 && c.conf.spec.Options["bridge"] == "" {
		c.conf.spec.Driver = berth.Link
	}
	c.previous = r
	return nil
}
