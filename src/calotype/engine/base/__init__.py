"""What a VM boots from: bases that are whole, or are filled while their guests run."""
